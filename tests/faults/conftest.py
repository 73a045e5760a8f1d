"""Commands under faults, and what `make faults` counted: runs/faults/summary.json."""

import collections
import datetime
import functools
import json
import os
import pathlib
import re

import peers
import pytest
import resume_cases
import shim
from command_line import CommandLine, trained
from faults import ALL

SUMMARY = pathlib.Path(os.environ.get("FLAXLM_FAULTS_SUMMARY", "runs/faults/summary.json"))
counted: dict = {}  # by test


@pytest.fixture(scope="session")
def text(tmp_path_factory) -> str:
    """Return a file of 500 paragraphs."""
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("".join(f"Row {i} of the text, which is long enough.\n\n" for i in range(500)))
    return str(path)


@pytest.fixture(scope="session")
def text_run(tmp_path_factory, compilation_cache):
    """Return a folder with a run of 2 steps on text; see `resume_cases`."""
    return resume_cases.text_run_in(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="session")
def task_run(tmp_path_factory, compilation_cache):
    """Return a folder with a run of 2 steps on a table."""
    return resume_cases.task_run_in(tmp_path_factory.mktemp("task"))


@pytest.fixture(scope="session")
def read_run(tmp_path_factory, text, compilation_cache):
    """Return a function that returns a run of one step on text, trained at its first call."""
    return functools.cache(
        lambda: trained(tmp_path_factory.mktemp("run"), peers.recipe(text, steps=1))[1]
    )


@pytest.fixture
def several(tmp_path, text, read_run):
    """Return what starts the processes of a verb; all are ended with the test."""
    started = peers.Peers(tmp_path, text, read_run)
    yield started
    started.close()


@pytest.fixture(scope="module")
def armed(tmp_path_factory, compilation_cache) -> CommandLine:
    """Return the command line whose commands take a `plan` of faults, in a folder of its own."""
    if not shim.library():
        pytest.skip("no C compiler on Linux: the faults of tests/faults/shim.c cannot be made")
    here = tmp_path_factory.mktemp("armed")
    return CommandLine(here, cwd=here, seconds=120, preload=str(shim.library()))


@pytest.fixture
def count(record_property):
    """Return a function that adds to the figures of a row of the table: count(row, kills=1)."""

    def add(row: str, **figures: float) -> None:
        record_property("faults", [row, figures])

    return add


def pytest_runtest_logreport(report):
    """Keep what a test counted, wherever it ran, or that there was one."""
    file = re.search(r"faults/test_(\w+)\.py", report.nodeid)
    if not file or report.skipped or (report.when != "call" and not report.failed):
        return
    rows = [value for name, value in report.user_properties if name == "faults"]
    rows = rows or [[file[1].replace("_", " "), {"tests": 1}]]
    figures: dict = collections.defaultdict(collections.Counter)
    for row, more in rows:
        figures[row].update(more)
    for row in figures.values():
        row["seconds"] = round(report.duration / len(figures), 1)
    run = {"failed": report.failed, "date": str(datetime.date.today())}
    counted[report.nodeid] = run | {"rows": figures}


def pytest_sessionfinish(session):
    """Write down what every test counted, where everything was run, beside that of other runs."""
    if not ALL or not counted or hasattr(session.config, "workerinput"):
        return
    SUMMARY.parent.mkdir(parents=True, exist_ok=True)
    known = json.loads(SUMMARY.read_text()) if SUMMARY.exists() else {}
    SUMMARY.write_text(json.dumps(known | counted, indent=2, sort_keys=True) + "\n")
