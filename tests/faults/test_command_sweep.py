"""Each call of whole commands that changes the disk: starts, resumes, `evaluate`, `convert`."""

import json
import shutil

import fault_recipes
import pytest
from faults import ALL
from sweeps import ERRORS, KILLS, Sweep


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Return the folder of data and recipes."""
    root = tmp_path_factory.mktemp("commands")
    fault_recipes.write_data(root)
    text = fault_recipes.recipe("lstm", root)
    text["data"]["cache_dir"] = str(root / "cache")
    text |= {"eval": {"split": ""}, "checkpoint": {"every": 2, "keep": 1}}
    recipes = {
        name: text | {"train": text["train"] | {"steps": steps}}
        for name, steps in (("start", 1), ("before", 2), ("resume", 4))
    }
    scored = recipes["scored"] = fault_recipes.recipe("regression", root)
    scored["train"]["steps"], scored["checkpoint"]["every"] = 1, 0
    preset = recipes["preset"] = fault_recipes.recipe("gpt", root)
    preset["model"] = {"name": "decoder", "preset": "gpt2", "vocab_size": 361}
    preset["model"] |= {"width": 16, "num_layers": 1, "num_heads": 2, "max_length": 32}
    preset["train"]["steps"], preset["eval"], preset["checkpoint"] = 1, {"split": ""}, {"every": 0}
    for name, recipe in recipes.items():
        (root / f"{name}.json").write_text(json.dumps(recipe))
    return root


def train(root, name, workdir) -> list[str]:
    return ["train", f"--config={root}/{name}.json", f"--workdir={workdir}"]


# {name: (the run that it begins with a copy of, if any; the command on it)}
COMMANDS = {
    "a first start": ("", lambda root, place: train(root, "start", place)),
    "a resume": ("before", lambda root, place: train(root, "resume", place)),
    "an evaluation": ("scored", lambda _, p: ["evaluate", f"--workdir={p}", "--split=valid"]),
    "convert": ("preset", lambda _, p: ["convert", f"--from={p}", f"--to=hf:{p}/hf"]),
}


@pytest.fixture(scope="module", params=COMMANDS if ALL else ["an evaluation"])
def command(request, armed, root, tmp_path_factory):
    """Return the name of a command and its sweep."""
    begin, arguments = COMMANDS[request.param]
    if begin:
        assert armed(*train(root, begin, root / begin)).code == 0

    def start(place):
        if begin:
            shutil.copytree(root / begin, place)
        else:
            place.mkdir()

    def run(place, plan):
        return armed(*arguments(root, place), plan=plan)

    again = (0, 77) if request.param == "convert" else (0,)
    return request.param, Sweep(start, run, tmp_path_factory.mktemp("swept"), again)


@pytest.mark.parametrize("faults", [KILLS, ERRORS] if ALL else [KILLS], ids=lambda f: f[0])
def test_every_point_of_a_command(command, count, faults):
    (name, sweep), before = command, command[1].restarts
    renames = [at for at, call in enumerate(sweep.calls, 1) if call.startswith("rename")]
    if ALL:
        fired = sweep.all(faults, sweep.seen)
    else:  # within what is made aside, and where neither report, old or new, has its name
        fired = sum(sweep.fault("kill", at) for at in (renames[0], renames[-1]))
    figures = {"points": sweep.seen if faults[0] == "kill" else 0, "faults": fired}
    count(f"sweep of {name}", restarts=sweep.restarts - before, **figures)
