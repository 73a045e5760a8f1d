"""A flipped bit in any file of a run is refused, said and mended, or changes nothing that is read.

Never is another result given without a word.
"""

import json
import pathlib
import random
import shutil

import fault_recipes
import operations
import pytest
from checkpoint_child import flip
from faults import ALL, differences, facts

FLIPS = 100 if ALL else 18  # in a part; each kind of file of each run at least once
SCRIPT = str(pathlib.Path(operations.__file__))
KINDS = {  # of a file of a run, by the part of its path that tells
    "arrays": "/state/",
    "manifest of a checkpoint": "checkpoints/*/manifest.json",
    "config and tokenizer of a checkpoint": "checkpoints/",
    "token cache": "cache/",
    "tokenizer": "tokenizer/",
    "config.json": "config.json",
    "metrics.jsonl": "metrics.jsonl",
    "result.json": "result.json",
    "report": "evaluations/",
}


def kind_of(name: str) -> str:
    """Return the kind of a file of a run."""
    for kind, part in KINDS.items():
        begin, _, end = part.partition("*")
        if begin in name and name.endswith(end):
            return kind
    return "other"


@pytest.fixture(scope="module")
def runs(armed, tmp_path_factory):
    """Return (a folder for copies, {a run: (its copy, what is read of it, its files by kind)})."""
    root = tmp_path_factory.mktemp("flips")
    fault_recipes.write_data(root)
    runs = {}
    for family in ("lstm", "buckets"):
        copy = root / family
        done = armed(*fault_recipes.command(family, root, copy))
        assert done.code == 0, done.err
        ((code, error, out, err),) = read(armed, [copy])
        assert code == 0 and not err, (error, err)
        files: dict[str, list] = {}
        for path in sorted(path for path in copy.rglob("*") if path.is_file()):
            if path.stat().st_size:
                name = path.relative_to(copy).as_posix()
                files.setdefault(kind_of(name), []).append(name)
        runs[family] = copy, json.loads(out), files
    return root, runs


def read(armed, places) -> list:
    """Read runs as the verbs do; return [exit code, error, output, warnings] of each."""
    done = armed(SCRIPT, "reading", *map(str, places))
    assert done.code == 0 and not done.err, done.err
    return [json.loads(line) for line in done.out.splitlines()]


def mended(armed, command, place, copy) -> str:
    """Start a finished run again, whose result or report is damaged: it is made anew, and said."""
    done = armed(*command)
    assert done.code == 0, done.err
    if set(differences(facts(place), facts(copy))) - {"result.json.damaged: new"}:
        return "silent"
    said = "result.json.damaged" in done.err or "made what was not there: result.json" in done.err
    return "said" if said else "the same"


def outcome(code: int, error: str, out: str, err: str, wanted) -> str:
    """Return what came of the reading of a damaged run: silent is what must not be."""
    if code:
        assert code in (2, 65, 66, 74, 77), error
        return "refused"
    return "said" if err else "the same" if json.loads(out) == wanted else "silent"


@pytest.mark.parametrize("part", range(10 if ALL else 1))
def test_no_flip_is_silent(armed, runs, count, part):
    root, of = runs
    draw, flips, found = random.Random(part), [], {}
    for number in range(FLIPS):
        copy, wanted, files = of[("lstm", "buckets")[number % 2]]
        at = number // 2 if ALL else number  # there are nine, so each meets both runs
        kind = sorted(files)[at % len(files)]
        name, place = draw.choice(files[kind]), root / f"{part}-{number}"
        shutil.copytree(copy, place)
        bit = draw.randrange(8 * (place / name).stat().st_size)
        flip(place / name, bit)
        flips.append((kind, name, bit, copy, wanted, place))
    whole = [place for kind, *_, place in flips if kind != "result.json"]
    outcomes = dict(zip(whole, read(armed, whole), strict=True))
    for kind, name, bit, copy, wanted, place in flips:
        if kind == "result.json":
            command = fault_recipes.command(copy.name, root, place)
            what = mended(armed, command, place, copy)
        else:
            what = outcome(*outcomes[place], wanted)
        shutil.rmtree(place)
        found.setdefault(what, []).append((kind, name, bit))
        count(f"flips: {kind}", **{what: 1, "flips": 1})
    assert not found.get("silent"), found["silent"]
