"""Each call of an operation that changes the disk is killed, or fails: nothing is lost or left."""

import pathlib
import shutil

import operations
import pytest
from faults import ALL
from sweeps import ERRORS, KILLS, Sweep

SCRIPT = str(pathlib.Path(operations.__file__))


@pytest.fixture(scope="module", params=list(operations.OPERATIONS))
def operation(request, armed, tmp_path_factory):
    root = tmp_path_factory.mktemp(request.param.replace(" ", "_"))
    ready = root / "ready"
    ready.mkdir()
    made = armed(SCRIPT, request.param, str(ready), "prepare")
    assert made.code == 0, made.err

    def run(place, plan):
        return armed(SCRIPT, request.param, str(place), plan=plan)

    return request.param, Sweep(lambda place: shutil.copytree(ready, place), run, root)


@pytest.mark.parametrize("faults", [KILLS, ERRORS] if ALL else [ERRORS], ids=lambda f: f[0])
def test_every_point_of_an_operation(operation, count, faults):
    (name, sweep), before = operation, operation[1].restarts
    figures = {"points": sweep.seen if faults[0] == "kill" else 0, "faults": sweep.all(faults, 3)}
    count(f"sweep of {name}", restarts=sweep.restarts - before, **figures)
