"""What an evaluation leaves behind for a person to look at.

    WORKDIR/evaluations/TASK-SPLIT/
        predictions.jsonl   of each example, in order: id (its own, if it has one), row (file and
                            line), input, gold, prediction, score, mistake
        scores.json         the scores
        errors.txt          the worst errors
        confusion.csv, confusion.png, reliability.png   where a label is answered

Beside them lies what a task writes for others to score, such as the file that a benchmark is sent,
and `SHA256SUMS`, by which whoever reads a report checks it (or `sha256sum -c`).
"""

import dataclasses
import hashlib
import json
import math
import pathlib
import re
import textwrap
import warnings
from collections.abc import Sequence

import jax
import numpy as np

from flaxlm import files, locks
from flaxlm.errors import DataError, StorageError, cause_of
from flaxlm.evaluation import compare
from flaxlm.evaluation.evaluate import Evaluation, batch_size_of, completed, evaluate_split
from flaxlm.metrics.labels import reliability
from flaxlm.progress import say
from flaxlm.tasks.task import Decisions, Task
from flaxlm.untrusted import parse_json, printable

WORST = 20
COLUMN = 100  # characters of a line of errors.txt
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
MOST_TICKS = 40  # labels of a picture


def examine(
    program, params, inputs, split: str, step: int, known: Evaluation | None = None
) -> dict:
    """Evaluate a whole split, write its report if it is a task's, and return its scores by name.

    `known` is the loop's evaluation of the same parameters, those of `step`: what it lacks is made.
    """
    config = program.config
    if known and known.answers and not config.objective.generates:
        batches = inputs.evaluation(split, batch_size_of(program))[0]
        evaluation = completed(known, config.task, batches.source.report)
    else:
        evaluation = evaluate_split(program, params, inputs, split, label="evaluate", full=True)
    amount = inputs.amount(split)
    if evaluation.scores:
        evaluation = dataclasses.replace(evaluation, scores=evaluation.scores | amount)
    found = None
    if evaluation.examples and jax.process_index() == 0:
        labels = getattr(config.objective, "labels", ())
        directory = place(inputs.workdir, config, split)
        write(directory, evaluation, config.task, labels, step, digest_of(inputs, split))
        found = {row["row"]: row["mistake"] for row in rows(evaluation, config.task, labels)}
        if evaluation.golds[0] is None:
            compared = f" and nothing to compare with {config.baseline}" * bool(config.baseline)
            kept = f"the answers are in {directory}/predictions.jsonl"
            say(f"no right answers, so no scores{compared}: {kept}")
    return _named(inputs, split, evaluation.scores, found)


def digest_of(inputs, split: str) -> str:
    """Return a digest of what a split is read from and asked; other data has other scores."""
    config = inputs.config
    asked = [config.raw["task"], config.raw["objective"], config.train.length]
    facts = [asked, {name: part.identity() for name, part in inputs.data([split]).items()}]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def stored(inputs, split: str, step: int) -> dict | None:
    """Return what `examine` returned of a step, from the report it left; None: there is none.

    Nor where `evaluate` has put that of other data in its place.
    """
    directory = place(inputs.workdir, inputs.config, split)
    try:
        compare.check(directory)
        scores = parse_json(compare.read(directory, "scores.json"))
    except (OSError, ValueError):
        return None
    except DataError as damage:
        warnings.warn(str(damage), stacklevel=2)
        return None
    if not isinstance(scores, dict) or scores.pop("step", None) != step:
        return None
    judged = scores.pop("judged", None)
    if judged and judged != digest_of(inputs, split):  # earlier reports do not say it
        return None
    return _named(inputs, split, scores)


def _named(inputs, split: str, scores: dict, found: dict[str, float] | None = None) -> dict:
    """Return scores by the names of `result.json`, compared with a baseline if there is one.

    `found` are the mistakes by row; None: those of the report.
    """
    config = inputs.config
    prefix = config.task_name if config.data.split == "whole" else split
    named = scores or inputs.amount(split) | {"examples": 0}  # none without right answers
    result = {f"{prefix}/{name}": value for name, value in named.items()}
    if config.baseline and scores and jax.process_index() == 0:
        name, judged = place(inputs.workdir, config, split).name, config.eval
        by = (judged.metric, judged.mode, config.baseline, found)
        result |= compare.summary(inputs.workdir, name, *by)
    return result


def place(workdir: pathlib.Path, config, split: str) -> pathlib.Path:
    """Return the directory of a split's report."""
    whole = config.data.split == "whole"
    return workdir / "evaluations" / (config.task_name if whole else f"{config.task_name}-{split}")


def write(
    directory: pathlib.Path,
    evaluation: Evaluation,
    task: Task,
    labels: Sequence[str] = (),
    step: int = 0,
    data: str = "",
) -> None:
    """Write the report of a split, which appears whole, or the one before it stays.

    `labels` are the names of the classes, where answers are their ids; `step` is that of the
    parameters, `data` what `digest_of` returns. StorageError where the directory cannot be made or
    written.
    """
    try:
        with locks.replacing_directory(directory) as aside:
            lines = [json.dumps(row, ensure_ascii=False) for row in rows(evaluation, task, labels)]
            files.replace(aside / "predictions.jsonl", "".join(f"{line}\n" for line in lines))
            for name, text in task.files(evaluation.answers, evaluation.examples, labels).items():
                files.replace(aside / name, text)
            if evaluation.scores:  # there is something to compare with
                files.replace(aside / "errors.txt", worst(evaluation, task, labels))
                decisions = task.decisions(evaluation.answers, evaluation.golds, labels)
                if decisions is not None:
                    _pictures(aside, decisions, labels)
            told = evaluation.scores | {"step": step} | ({"judged": data} if data else {})
            text = json.dumps(told, indent=2, sort_keys=True)
            files.replace(aside / "scores.json", f"{text}\n")
            made = sorted(path for path in aside.iterdir() if path.is_file())
            sums = "".join(f"{files.sha256(path)}  {path.name}\n" for path in made)
            files.replace(aside / compare.SUMS, sums)
    except OSError as error:
        raise StorageError(f"cannot write {directory}: {cause_of(error, directory)}") from None


def rows(evaluation: Evaluation, task: Task, labels: Sequence[str] = ()):
    """Yield what `predictions.jsonl` holds of each example; null: not known."""
    columns = evaluation.examples, evaluation.golds, evaluation.answers
    for example, gold, answer in zip(*columns, strict=True):
        yield {
            "id": example.get("own_id", example["id"]),
            "row": example.get("row", example["id"]),
            "input": task.show_input(example),
            "gold": None if gold is None else task.show(gold, labels),
            "prediction": task.show(answer.value, labels),
            "score": None if math.isnan(answer.score) else round(answer.score, 6),
            "mistake": None if gold is None else round(task.mistake(answer, gold), 6),
        }


def worst(evaluation: Evaluation, task: Task, labels: Sequence[str] = ()) -> str:
    """Return the worst errors as text for a person, the worst first."""
    pairs = zip(evaluation.answers, evaluation.golds, strict=True)
    mistakes = np.array([task.mistake(answer, gold) for answer, gold in pairs])
    order = np.argsort(-mistakes, kind="stable")[:WORST]
    order = order[mistakes[order] > 0]
    total = int(np.count_nonzero(mistakes))
    lines = [f"{total} of {len(mistakes)} examples are not answered rightly; the worst:"]
    shown = list(rows(evaluation, task, labels))
    for index in order:
        row = shown[index]
        named = f" ({row['id']})" * (row["id"] != row["row"])
        lines.append(f"\n{printable(row['row'])}{printable(named)}")
        inputs = row["input"] if isinstance(row["input"], dict) else {"input": row["input"]}
        sure = "" if row["score"] is None else f"  ({row['score']:.3f})"
        entries = inputs | {"gold": row["gold"], "prediction": row["prediction"]}
        for name, value in entries.items():
            text = " ".join(_plain(value).split()) + (sure if name == "prediction" else "")
            lead = f"  {printable(name):12}"
            indents = {"initial_indent": lead, "subsequent_indent": " " * len(lead)}
            text = printable(textwrap.shorten(text, 6 * COLUMN, placeholder=" …"))
            lines += textwrap.wrap(text, COLUMN, **indents) or [""]
    return "".join(f"{line}\n" for line in lines)


def _plain(value) -> str:
    """Return a shown value as text; pairs, as of words and tags, as `word/tag word/tag`."""
    if isinstance(value, list) and all(isinstance(item, list) for item in value):
        return " ".join("/".join(map(str, item)) for item in value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def confusion(decisions: Decisions, classes: int) -> np.ndarray:
    """Return int64 [C, C]: how often gold i was answered with j."""
    counts = np.zeros((classes, classes), np.int64)
    np.add.at(counts, (np.array(decisions.golds, np.int64), decisions.chosen), 1)
    return counts


def _pictures(directory: pathlib.Path, decisions: Decisions, labels: Sequence[str]) -> None:
    names = list(labels) or list(map(str, range(decisions.scores.shape[1])))
    counts = confusion(decisions, len(names))
    lines = [["gold \\ prediction", *names], *([n, *r] for n, r in zip(names, counts, strict=True))]
    files.replace(directory / "confusion.csv", "".join(map(csv_line, lines)))
    _draw_confusion(directory / "confusion.png", counts, names)
    confident = reliability(decisions.scores, decisions.golds)
    _draw_reliability(directory / "reliability.png", *confident)


def csv_line(cells: Sequence[object]) -> str:
    """Return a line of CSV of which a spreadsheet computes nothing: `'` stands before a formula."""
    line = []
    for cell in map(str, cells):
        formula = cell.startswith(("=", "+", "-", "@", "\t", "\r")) and not NUMBER.fullmatch(cell)
        cell = f"'{cell}" if formula else cell
        quoted = not {",", '"', "\r", "\n"}.isdisjoint(cell)
        line.append('"' + cell.replace('"', '""') + '"' if quoted else cell)
    return ",".join(line) + "\n"


def _figure(width: float, height: float):
    from matplotlib.figure import Figure

    figure = Figure((width, height), layout="constrained")
    return figure, figure.subplots()


def _save(path: pathlib.Path, figure) -> None:
    with files.replacing(path) as file:
        figure.savefig(file, format="png", dpi=150, bbox_inches="tight")


def drawable(names: Sequence[str]) -> list[str]:
    """Return the names, or their numbers where the font cannot draw one of them."""
    from matplotlib import font_manager

    font = font_manager.get_font(font_manager.findfont("DejaVu Sans"))
    known = font.get_charmap()
    if all(ord(character) in known for name in names for character in name):
        short = (textwrap.shorten(name, 24, placeholder="…") or name[:24] for name in names)
        return [name.replace("$", r"\$") for name in short]  # between two, formulas would be set
    return [str(index) for index in range(len(names))]


def _draw_confusion(path: pathlib.Path, counts: np.ndarray, names: Sequence[str]) -> None:
    """Draw a confusion matrix: colour is the share of the row, figures are counts."""
    size = len(names)
    side = min(3.5 + 0.45 * size, 14.0)
    figure, axes = _figure(side + 1, side)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(shares, vmin=0, vmax=1, cmap="Blues")
    figure.colorbar(image, ax=axes, label="share of the gold label", fraction=0.046)
    axes.set(xlabel="prediction", ylabel="gold")
    if size <= MOST_TICKS:
        shown = drawable(names)
        slanted = {"rotation": 45, "horizontalalignment": "right"} if size > 3 else {}
        axes.set_xticks(range(size), shown, **slanted)
        axes.set_yticks(range(size), shown)
        for (i, j), count in np.ndenumerate(counts):
            dark = shares[i, j] > 0.5
            small = {"fontsize": 8 if size < 12 else 6, "color": "white" if dark else "black"}
            axes.text(j, i, f"{count:,}", ha="center", va="center", **small)
    _save(path, figure)


def _draw_reliability(path: pathlib.Path, confidence, accuracy, count) -> None:
    """Draw accuracy against confidence (Guo et al., 2017): on the diagonal, p means p."""
    figure, axes = _figure(5.0, 4.6)
    bins, full = len(count), count > 0
    edges = np.arange(bins) / bins
    axes.plot([0, 1], [0, 1], color="grey", linewidth=1, linestyle="--", label="calibrated")
    axes.bar(edges[full], accuracy[full], 1 / bins, align="edge", edgecolor="white", alpha=0.8)
    axes.plot(confidence[full], accuracy[full], "o", color="black", markersize=3)
    for edge, high, number in zip(edges[full], accuracy[full], count[full], strict=True):
        axes.text(edge + 0.5 / bins, high + 0.01, f"{number:,}", ha="center", fontsize=6)
    axes.set(xlim=(0, 1), ylim=(0, 1.06), xlabel="confidence", ylabel="accuracy")
    axes.legend(loc="upper left", frameon=False)
    _save(path, figure)
