"""Each call of whole commands that changes the disk: starts, resumes, `evaluate`, `convert`."""

import json
import shutil

import fault_recipes
import pytest
from faults import ALL
from sweeps import ERRORS, KILLS, Sweep


@pytest.fixture(scope="module")
def ready(armed, tmp_path_factory):
    """Return the folder of what the commands begin with, made once."""
    root = tmp_path_factory.mktemp("commands")
    fault_recipes.write_data(root)
    text = fault_recipes.recipe("lstm", root)
    text["data"]["cache_dir"] = str(root / "cache")
    text |= {"eval": {"split": ""}, "checkpoint": {"every": 2, "keep": 1}}
    for name, steps in (("start", 1), ("before", 2), ("resume", 4)):
        recipe = text | {"train": text["train"] | {"steps": steps}}
        (root / f"{name}.json").write_text(json.dumps(recipe))
    assert armed(*train(root, "before", root / "before")).code == 0
    scored = fault_recipes.recipe("regression", root)
    scored["train"]["steps"], scored["checkpoint"]["every"] = 1, 0
    (root / "scored.json").write_text(json.dumps(scored))
    assert armed(*train(root, "scored", root / "scored")).code == 0
    preset = fault_recipes.recipe("gpt", root)
    preset["model"] = {"name": "decoder", "preset": "gpt2", "vocab_size": 361}
    preset["model"] |= {"width": 16, "num_layers": 1, "num_heads": 2, "max_length": 32}
    preset["train"]["steps"], preset["eval"], preset["checkpoint"] = 1, {"split": ""}, {"every": 0}
    (root / "preset.json").write_text(json.dumps(preset))
    assert armed(*train(root, "preset", root / "preset")).code == 0
    return root


def train(root, name, workdir) -> list[str]:
    return ["train", f"--config={root}/{name}.json", f"--workdir={workdir}"]


def commands(root) -> dict:
    """Return {name: (the directory that it begins with, or none; the command at a place)}."""
    return {
        "a first start": (None, lambda place: train(root, "start", place)),
        "a resume": ("before", lambda place: train(root, "resume", place)),
        "an evaluation": ("scored", lambda p: ["evaluate", f"--workdir={p}", "--split=valid"]),
        "convert": (None, lambda p: ["convert", f"--from={root}/preset", f"--to=hf:{p}"]),
    }


@pytest.fixture(scope="module", params=list(commands(None)) if ALL else ["an evaluation"])
def command(request, armed, ready, tmp_path_factory):
    """Return the name of a command and its sweep."""
    begin, arguments = commands(ready)[request.param]

    def start(place):
        if begin:
            shutil.copytree(ready / begin, place)
        else:
            place.mkdir()

    def run(place, plan):
        return armed(*arguments(place), plan=plan)

    again = (0, 77) if request.param == "convert" else (0,)
    return request.param, Sweep(start, run, tmp_path_factory.mktemp("swept"), again)


@pytest.mark.parametrize("faults", [KILLS, ERRORS] if ALL else [KILLS], ids=lambda f: f[0])
def test_every_point_of_a_command(command, count, faults):
    (name, sweep), before = command, command[1].restarts
    figures = {"points": sweep.seen if faults[0] == "kill" else 0, "faults": sweep.all(faults, 2)}
    count(f"sweep of {name}", restarts=sweep.restarts - before, **figures)
