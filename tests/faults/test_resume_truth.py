"""What a resume says of the bits to come is so, and other data or another config is refused."""

import json
import pathlib
import shutil

import pytest
import tiny_runs as tiny

from flaxlm.errors import Unsafe
from flaxlm.train import train
from flaxlm.training.config import from_dict

pytestmark = pytest.mark.usefixtures("one_device")
LINES = [f"the sea was grey on day {n} and we rowed to a green island" for n in range(60)]


def text_file(path: pathlib.Path, lines=LINES) -> pathlib.Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n\n" for line in lines))
    return path


def table(path: pathlib.Path, count: int) -> pathlib.Path:
    rows = [{"text": line, "label": "even" if n % 2 == 0 else "odd"}
            for n, line in enumerate(LINES[:count])]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def text_recipe(root: pathlib.Path, **sections) -> dict:
    sections = {
        "data": {"path": str(root / "text"), "document": "paragraph", "valid_fraction": 0.2},
        "model": {"vocab_size": 281} | tiny.QUICK,
        "train": {"steps": 2},
        "eval": {"every": 0, "batch_size": 16},
    } | sections
    return tiny.recipe("causal", **sections)


def task_recipe(root: pathlib.Path, **sections) -> dict:
    sections = {
        "data": {"path": str(root / "a.jsonl"), "split": "file",
                 "valid_path": str(root / "b.jsonl")},
        "task": {"name": "classification"},
        "objective": {"name": "classification", "labels": ("even", "odd")},
        "model": {"vocab_size": 281} | tiny.QUICK,
        "train": {"steps": 2, "length": 24},
        "eval": {"every": 0, "batch_size": 16},
    } | sections  # fmt: skip
    return tiny.recipe("causal", **sections)


@pytest.fixture(scope="module")
def text_run(tmp_path_factory, compilation_cache):
    """Return a folder with a run of 2 steps on two files of text."""
    root = tmp_path_factory.mktemp("text")
    text_file(root / "text" / "a.txt")
    text_file(root / "text" / "b.txt", LINES[::-1])
    train(from_dict(text_recipe(root)), root / "run")
    return root


@pytest.fixture(scope="module")
def task_run(tmp_path_factory, compilation_cache):
    """Return a folder with a run of 2 steps on a table."""
    root = tmp_path_factory.mktemp("task")
    table(root / "a.jsonl", 40)
    table(root / "b.jsonl", 20)
    train(from_dict(task_recipe(root)), root / "run")
    return root


def append(path: pathlib.Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


def flip(path: pathlib.Path) -> None:
    data = bytearray(path.read_bytes())
    data[12] ^= 1
    path.write_bytes(data)


TEXT = {
    "appended": (lambda d: append(d / "b.txt", "more\n"), "5 bytes were appended to .*b.txt"),
    "a byte": (lambda d: flip(d / "a.txt"), r"a.txt was changed \(of the same size\)"),
    "shorter": (lambda d: text_file(d / "a.txt", LINES[:50]), r"a.txt was changed \(.* → .* bytes"),
    "missing": (lambda d: (d / "a.txt").unlink(), "a.txt is missing"),
    "new": (lambda d: text_file(d / "c.txt"), "c.txt is new"),
    "swapped": (lambda d: ((d / "a.txt").rename(d / "c"), (d / "b.txt").rename(d / "a.txt"),
                           (d / "c").rename(d / "b.txt")), "a.txt was changed"),
}  # fmt: skip


@pytest.mark.parametrize("case", TEXT)
def test_other_text_is_refused_naming_the_file(case, text_run):
    change, message = TEXT[case]
    before = {p: p.read_bytes() for p in (text_run / "text").iterdir()}
    change(text_run / "text")
    try:
        with pytest.raises(Unsafe, match=f"trained on other data up to step 2.*{message}"):
            train(from_dict(text_recipe(text_run, train={"steps": 4})), text_run / "run")
    finally:
        shutil.rmtree(text_run / "text")
        (text_run / "text").mkdir()
        for path, contents in before.items():
            path.write_bytes(contents)


ROWS = {
    "rows of training": (lambda r: table(r / "a.jsonl", 50),
                         "bytes were appended to .*a.jsonl; the train split has 50 examples "
                         "instead of 40"),
    "a label": (lambda r: (r / "a.jsonl").write_text(
        (r / "a.jsonl").read_text().replace("even", "odd", 1)), r"a.jsonl was changed"),
    "rows judged by": (lambda r: table(r / "b.jsonl", 10), "b.jsonl was changed"),
}  # fmt: skip


@pytest.mark.parametrize("case", ROWS)
def test_other_rows_of_a_task_are_refused_naming_the_file(case, task_run):
    change, message = ROWS[case]
    before = {p: p.read_bytes() for p in task_run.glob("*.jsonl")}
    change(task_run)
    try:
        with pytest.raises(Unsafe, match=message):
            train(from_dict(task_recipe(task_run, train={"steps": 4, "length": 24})),
                  task_run / "run")  # fmt: skip
    finally:
        for path, contents in before.items():
            path.write_bytes(contents)
