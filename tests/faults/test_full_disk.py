"""A full disk ends a command within seconds: exit 74, the place, the bytes needed and free."""

import errno
import json
import os
import re
import resource
import shutil
import subprocess
import time
import types

import broken
import fault_recipes
import pytest
import shim
from faults import differences, facts, selection

from flaxlm.errors import cause_of
from flaxlm.training import workdir

LACKS = r"No space left on device \([\d,.]+ \w+ needed, [\d,.]+ \w+ free\)"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("full")
    fault_recipes.write_data(root)
    return root


@pytest.fixture
def small(tmp_path):
    """Return a disk of two megabytes, where the system lets us mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(place)]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_what_a_disk_lacks_is_what_is_said(tmp_path, monkeypatch):
    full, large = OSError(errno.ENOSPC, "No space"), OSError(errno.EFBIG, "File too large")
    assert re.fullmatch(LACKS, cause_of(full, tmp_path, 5000))
    disk = types.SimpleNamespace(f_files=1234, f_favail=0, f_bavail=9, f_frsize=4096)
    monkeypatch.setattr(os, "statvfs", lambda place: disk)
    assert cause_of(full, tmp_path).endswith("its most files, 1,234)")
    disk.f_files = 0  # of a file system that makes as many as it needs
    assert re.fullmatch(LACKS, cause_of(full, tmp_path))
    monkeypatch.setattr(resource, "getrlimit", lambda which: (5000, 9000))
    assert cause_of(large, tmp_path, 8192).endswith(
        "(8,192 bytes needed; ulimit -f lets this process write files of 5,000 bytes)"
    )
    assert "raise the limit or choose" in str(workdir.unwritable(tmp_path, large))


def recipe(root, name: str = "lstm", **sections) -> str:
    path = root / "recipe.json"
    path.write_text(json.dumps(fault_recipes.recipe(name, root) | sections))
    return str(path)


def ended_full(done, place, began: float = 0.0) -> None:
    """Check that a command ended because the disk of a place is full, and quickly."""
    assert done.code == 74 and len(done.errors) == 1, done.err
    assert str(place) in done.errors[0], done.err
    assert re.search(LACKS, done.errors[0]) or "free and checkpoints need" in done.errors[0]
    assert not began or time.time() - began < 10


def test_a_real_disk_that_fills_up_spares_what_was_saved(armed, root, small, count):
    command = ["train", f"--config={recipe(root)}", f"--workdir={small}/run"]
    (running,) = armed.start([command])
    running.until(lambda: (small / "run/checkpoints/step_00000002").exists())
    began = time.time()
    with open(small / "ballast", "wb", buffering=0) as file:  # until nothing is free
        try:
            while file.write(b"\0" * 4096):
                pass
        except OSError:
            pass
    done = running.wait(30)
    ended_full(done, small / "run", began)
    assert "the last good one is step" in done.errors[0] or "need" in done.errors[0]
    (small / "ballast").unlink()
    assert armed(*command).code == 0
    whole = [*command[:2], f"--workdir={root}/whole"]
    assert armed(*whole).code == 0
    assert differences(facts(small / "run"), facts(root / "whole")) == []
    shutil.rmtree(root / "whole")
    count("full disks", disks=1)


PLACES = {
    "the directories of a step": r"^mkdir .*state\.orbax-checkpoint-tmp$",
    "the arrays": r"^writev .*/ocdbt\.process_0/d/",
    "the manifest": r"^write .*step_\d+/\.manifest\.json",
}


CASES = [(what, fault) for what in PLACES for fault in ("full", "quota")]


@pytest.fixture(scope="module")
def saving(armed, root):
    """Return the arguments of a run, what it leaves, and its calls that take space, in order."""
    path = recipe(root, checkpoint={"every": 2, "keep": 2}, eval={"split": ""})
    command = ["train", f"--config={path}"]
    with shim.Plan(root / "whole", kinds=shim.SPACE) as plan:
        assert armed(*command, f"--workdir={root}/whole", plan=plan).code == 0
    wanted = facts(root / "whole")
    shutil.rmtree(root / "whole")
    return command, wanted, plan.points()


@pytest.mark.parametrize(("what", "fault"), selection(CASES[::-1], 1))
def test_a_disk_that_is_full_for_a_part_of_a_save(armed, saving, tmp_path, count, what, fault):
    arguments, wanted, calls = saving
    command = [*arguments, f"--workdir={tmp_path}/run"]
    met = [n for n, line in enumerate(calls, 1) if re.search(PLACES[what], line)]
    with shim.Plan(tmp_path, fault, met[2]) as plan:  # of the third save
        done = armed(*command, plan=plan)
        assert plan.seconds_since() < 10
    if fault == "full":
        ended_full(done, tmp_path / "run")
    else:
        assert done.code == 74 and "Disk quota exceeded (" in done.errors[0], done.err
    assert "the last good one is step 4" in done.errors[0]
    assert armed(*command).code == 0
    assert differences(facts(tmp_path / "run"), wanted) == []
    count("full disks", disks=1)


def test_a_step_that_takes_long_does_not_hold_up_the_end(armed, root, tmp_path):
    path = recipe(root, checkpoint={"every": 2, "keep": 2}, eval={"split": ""})
    place = "flaxlm.training.metrics.MetricWriter.pause"  # which comes after the save has begun
    command = ["train", f"--config={path}", f"--workdir={tmp_path}/run"]
    with shim.Plan(
        tmp_path / "run/checkpoints/.writing-step_00000002/tokenizer", "full", 1
    ) as plan:
        done = armed(broken.__file__, place, "hang", *command, plan=plan)
        assert plan.fired and plan.seconds_since() < 10
    ended_full(done, tmp_path / "run")
    assert "broken: hang" in done.err


def test_every_other_verb_says_it_too(armed, root, tmp_path, count):
    path = recipe(root, "regression", train={"steps": 1, "batch_size": 8, "length": 24})
    run = f"--workdir={tmp_path}/run"
    assert armed("train", f"--config={path}", run).code == 0
    verbs = [["evaluate", run, "--split=valid"], ["embed", run, f"--input={root}/rows.valid.jsonl",
             f"--output={tmp_path}/run/out.npy"]]  # fmt: skip
    path = recipe(root)
    verbs.append(["tokenize", f"--config={path}", f"--workdir={tmp_path}/tokens"])
    for command in verbs:
        with shim.Plan(tmp_path, "full", 1) as plan:
            done = armed(*command, plan=plan)
            assert plan.fired and plan.seconds_since() < 10, command
        ended_full(done, tmp_path)
    count("full disks", disks=len(verbs))
