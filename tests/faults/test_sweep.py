"""Each call of an operation that changes the disk is killed, or fails: nothing is lost or left."""

import pathlib
import shutil

import operations
import pytest
from faults import ALL
from sweeps import FAULTS, Sweep

SCRIPT = str(pathlib.Path(operations.__file__))


@pytest.fixture(scope="module", params=operations.SWEPT)
def operation(request, armed, tmp_path_factory):
    root = tmp_path_factory.mktemp(request.param.replace(" ", "_"))
    ready = root / "ready"
    ready.mkdir()
    made = armed(SCRIPT, request.param, str(ready), "prepare")
    assert made.code == 0, made.err

    def run(place, plan):
        return armed(SCRIPT, request.param, str(place), plan=plan)

    return request.param, Sweep(lambda place: shutil.copytree(ready, place), run, root)


@pytest.mark.parametrize("fault", FAULTS if ALL else ["full"])
def test_every_point_of_an_operation(operation, count, fault):
    name, sweep = operation
    count(f"sweep of {name}", points=sweep.seen * ALL, faults=sweep.all([fault], 3))
