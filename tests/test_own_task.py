"""The task of docs/extending.md is one file of at most 60 lines, and does all that tasks do."""

import json
import pathlib
import re
import sys
import types

import pytest
import tiny_runs as tiny

from flaxlm.errors import DataError
from flaxlm.tasks import TASKS
from flaxlm.train import train
from flaxlm.training import config as run_config

PAGE = (pathlib.Path(__file__).parents[1] / "docs" / "extending.md").read_text()
pytestmark = pytest.mark.usefixtures("one_device")
ASKED = {"LOC:city": "Where is", "HUM:ind": "Who is", "NUM:date": "When was"}


@pytest.fixture
def trec(monkeypatch):
    """Put the task in place as the page says."""
    (code,) = (c for c in re.findall(r"```python\n(.*?)```", PAGE, re.S) if "LabelTask" in c)
    name, cls = re.search(r'the row `"(\w+)": (\w+),`', PAGE).groups()
    assert len(code.splitlines()) <= 60
    module = types.ModuleType("flaxlm.tasks.trec")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(code, "extending.md", "exec"), module.__dict__)
    monkeypatch.setitem(TASKS, name, getattr(module, cls))
    return name


def write(path, count):
    kinds = list(ASKED.items())
    rows = [f"{kinds[i % 3][0]} {kinds[i % 3][1]} {chr(97 + i % 26)} ?\n" for i in range(count)]
    path.write_text("".join(rows))
    return str(path)


def recipe(name, directory):
    return tiny.recipe(
        "causal",
        task={"name": name},
        objective={"name": "classification"},
        model={"vocab_size": 281},
        data={
            "path": write(directory / "train.label", 90),
            "split": "file",
            "valid_path": write(directory / "valid.label", 30),
        },
        train={"steps": 60, "length": 24},
        eval={"every": 30},
    )


def test_it_trains_is_judged_and_reported(trec, tmp_path):
    config = run_config.from_dict(recipe(trec, tmp_path))
    assert (config.eval.metric, config.eval.mode) == ("accuracy", "max")
    assert len(config.objective.labels) == 6
    result = train(config, tmp_path / "run")
    assert result["valid/accuracy"] > 0.7 and 0 <= result["valid/ece"] < 1
    report = tmp_path / "run" / "evaluations" / "trec-valid"
    rows = [json.loads(line) for line in (report / "predictions.jsonl").open()]
    assert [row["gold"] for row in rows[:3]] == ["LOC", "HUM", "NUM"]
    assert (report / "confusion.png").stat().st_size > 0


def test_its_bad_lines_are_named(trec, tmp_path):
    made = recipe(trec, tmp_path)
    path = pathlib.Path(made["data"]["path"])
    for line, message in (
        ("no label here", "line 91 is not"),
        ("SUN:x Why ?", "'SUN'.*valid: ABBR"),
    ):
        path.write_text(write(path, 90) and path.read_text() + line + "\n")
        with pytest.raises(DataError, match=message):
            train(run_config.from_dict(made), tmp_path / "run")
