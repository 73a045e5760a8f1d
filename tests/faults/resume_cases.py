"""Runs of two steps on a text and on a table, to go on with."""

import json
import os
import pathlib

import tiny_runs as tiny
from command_line import trained

from flaxlm.train import train
from flaxlm.training.config import from_dict

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


def text_run_in(root: pathlib.Path) -> pathlib.Path:
    """Leave a run of 2 steps on two files of text in a folder; return the folder."""
    text_file(root / "text" / "a.txt")
    text_file(root / "text" / "b.txt", LINES[::-1])
    return run_in(root, text_recipe(root))


def task_run_in(root: pathlib.Path) -> pathlib.Path:
    """Leave a run of 2 steps on a table in a folder; return the folder."""
    table(root / "a.jsonl", 40)
    table(root / "b.jsonl", 20)
    return run_in(root, task_recipe(root))


def run_in(root: pathlib.Path, recipe: dict) -> pathlib.Path:
    """Train a recipe in a folder, by the code of FLAXLM_CHECKOUT if that is set; return it."""
    if "FLAXLM_CHECKOUT" in os.environ:
        trained(root, recipe)
    else:
        with tiny.one_device():
            train(from_dict(recipe), root / "run")
    return root
