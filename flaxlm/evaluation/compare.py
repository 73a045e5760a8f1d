"""Is a run better than another one? On the same examples, and over the same seeds.

A run is a directory with the reports of its evaluations; a run over several seeds holds one such
directory a seed, `seed_0`, `seed_1`, …
"""

import contextlib
import hashlib
import pathlib
from collections.abc import Sequence

import numpy as np

from flaxlm import locks
from flaxlm.errors import DataError, MissingInput
from flaxlm.metrics.paired import mcnemar, over_seeds, paired_bootstrap, paired_t
from flaxlm.untrusted import file_bytes, parse_json

SUMS = "SHA256SUMS"  # of the files of a report


def members(run: pathlib.Path) -> list[pathlib.Path]:
    """Return a run's directories, one a seed; the run itself where it has one seed."""
    seeds = [p for p in run.glob("seed_*") if p.name.removeprefix("seed_").isdigit()]
    return sorted(seeds, key=lambda p: int(p.name.removeprefix("seed_"))) or [run]


def reports(run: pathlib.Path, name: str) -> list[pathlib.Path]:
    """Return the report of the evaluation TASK-SPLIT of each of a run's seeds.

    MissingInput names one that has none.
    """
    directories = [member / "evaluations" / name for member in members(run)]
    for directory in directories:
        with locks.locked(directory.parent, shared=True):
            there = (directory / "predictions.jsonl").is_file()
        if not there:
            others = sorted(p.name for p in directory.parent.glob("*") if p.is_dir())
            raise MissingInput(
                f"{directory} is not there, so nothing can be compared with it (there: "
                f"{', '.join(others) or 'nothing'}); run `evaluate` on {directory.parents[1]} first"
            )
    return directories


def read(report: pathlib.Path, name: str) -> bytes:
    """Return a file of a report, which another process may be replacing.

    DataError where it is not what was written, as far as a report says that: earlier ones do not.
    """
    with locks.locked(report.parent, shared=True):
        contents, sums = file_bytes(report / name), report / SUMS
        listed = file_bytes(sums) if sums.exists() else b""
    line = f"{hashlib.sha256(contents).hexdigest()}  {name}\n".encode()
    if listed and line not in listed:
        raise DataError(
            f"{report / name} is not what was written (its SHA-256 is not that of {SUMS}); run "
            "`evaluate` there again"
        )
    return contents


def check(report: pathlib.Path) -> None:
    """Raise DataError where a file of a report is not what was written; OSError where none is."""
    sums = report / SUMS
    listed = file_bytes(sums).decode(errors="replace").splitlines() if sums.exists() else []
    for name in {
        "scores.json",
        "predictions.jsonl",
        *(pathlib.Path(line[66:]).name for line in listed),
    }:
        read(report, name)


def _parsed(text: bytes, path: pathlib.Path, line: int = 1) -> dict:
    """Return a JSON object; DataError where it is none."""
    with contextlib.suppress(ValueError):
        if isinstance(row := parse_json(text), dict):
            return row
    raise DataError(f"{path}, line {line} is damaged; run `evaluate` there again")


def mistakes(report: pathlib.Path) -> dict[str, float]:
    """Return {row: mistake} of a report's examples, 0 where the answer is right."""
    by_id, text = {}, read(report, "predictions.jsonl")
    for number, line in enumerate(text.removesuffix(b"\n").split(b"\n"), 1):
        row = _parsed(line, report / "predictions.jsonl", number)
        if row["mistake"] is None:
            raise DataError(f"{report}/predictions.jsonl, line {number} has no right answer")
        place = row.get("row", row["id"])  # ids of a file's own may stand there twice
        if place in by_id:
            raise DataError(f"{report}/predictions.jsonl, line {number}: {place} again")
        by_id[place] = row["mistake"]
    return by_id


def on_examples(
    ours: Sequence[pathlib.Path],
    theirs: Sequence[pathlib.Path],
    known: dict[str, float] | None = None,
) -> dict[str, float]:
    """Return how a run compares with another on the same examples, means over their seeds.

    `right` is the difference in the share of right answers and `mistake` that of the mean mistake
    (less is better), each with `_low`, `_high` (95 %) and `_p` of a paired bootstrap; for one
    seed each there are also `only_ours`, `only_theirs` and `mcnemar_p`. DataError where they
    answered other examples. `known` are the mistakes of the one report of ours, if they are known.
    """
    sides = [[mistakes(report) for report in side] for side in (() if known else ours, theirs)]
    sides[0] = sides[0] or [known]
    ids = list(sides[0][0])
    for report, answered in zip([*ours, *theirs], [*sides[0], *sides[1]], strict=True):
        if answered.keys() != set(ids):
            lacks = sorted(answered.keys() ^ set(ids))
            raise DataError(
                f"{report} and {ours[0]} answer different examples, {lacks[0]} among "
                f"{len(lacks)}; evaluate both on the same file"
            )
    tables = [[[answered[i] for i in ids] for answered in side] for side in sides]
    ours_SN, theirs_SN = map(np.array, tables)
    comparison = {}
    for name, mean in (("right", lambda m: (m == 0).mean(0)), ("mistake", lambda m: m.mean(0))):
        test = paired_bootstrap(mean(ours_SN), mean(theirs_SN))
        comparison |= {name: test.difference, f"{name}_low": test.low, f"{name}_high": test.high}
        comparison[f"{name}_p"] = test.p
    if len(ours_SN) == len(theirs_SN) == 1:
        test = mcnemar(ours_SN[0] == 0, theirs_SN[0] == 0)
        comparison |= {"only_ours": test.only_a, "only_theirs": test.only_b, "mcnemar_p": test.p}
    return comparison


def scores(reports: Sequence[pathlib.Path]) -> dict[str, list[float]]:
    """Return {score: its value of each seed}."""
    name = "scores.json"
    rows = [_parsed(read(report, name), report / name) for report in reports]
    facts = ("step", "judged", "examples", "examples_read")
    names = [n for n in rows[0] if n not in facts and not n.endswith(("_low", "_high"))]
    return {name: [row[name] for row in rows] for name in names if all(name in r for r in rows)}


def summary(
    run: pathlib.Path,
    name: str,
    metric: str,
    mode: str,
    baseline: str = "",
    known: dict[str, float] | None = None,
) -> dict:
    """Return {score_mean, score_sd} over a run's seeds, the best, and how it beats a baseline.

    `metric` (whose `mode` is max or min) tells the best seed of the evaluation `name`, TASK-SPLIT;
    a `baseline` is another run with its report; `known` as in `on_examples`. MissingInput or
    DataError where the two cannot be compared.
    """
    ours = reports(run, name)
    result, ours_scores = {}, scores(ours)
    if len(ours) > 1:
        for score, values in ours_scores.items():
            over = over_seeds(values, mode)
            result |= {f"{score}_mean": over.mean, f"{score}_sd": over.sd}
        best = (max if mode == "max" else min)(ours_scores[metric])
        at = ours_scores[metric].index(best)
        result |= {f"{metric}_best": best, "best_seed": members(run)[at].name}
    if not baseline:
        return result
    theirs = reports(pathlib.Path(baseline), name)
    result |= {f"baseline/{key}": value for key, value in on_examples(ours, theirs, known).items()}
    if len(ours) == len(theirs) > 1:
        test = paired_t(ours_scores[metric], scores(theirs)[metric])
        result |= {f"baseline/{metric}": test.difference, f"baseline/{metric}_low": test.low}
        result |= {f"baseline/{metric}_high": test.high, f"baseline/{metric}_p": test.p}
    return result
