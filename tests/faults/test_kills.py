"""Whole commands, killed at random moments and started again, end as if nothing had happened."""

import json
import os
import random
import shutil
import signal
import time

import fault_recipes
import pytest
import shim
from faults import ALL, differences, facts, leftovers, selection

FAMILIES = fault_recipes.FAMILIES if ALL else ["regression"]
KILLS = 11 if ALL else 1  # of each family, at least


@pytest.fixture(scope="module")
def root(armed, tmp_path_factory):
    root = tmp_path_factory.mktemp("killed")
    fault_recipes.write_data(root)
    if {"lora", "glue"} & set(FAMILIES):
        assert armed(*fault_recipes.command("gpt", root, root / "init")).code == 0
    return root


@pytest.fixture(scope="module")
def undisturbed(armed, root):
    """Return a function: of a family, the facts of a run that nothing disturbs, and its seconds."""
    known = {}

    def of(family: str):
        if family not in known:
            workdir, began = root / "whole", time.monotonic()
            done = armed(*fault_recipes.command(family, root, workdir))
            assert done.code == 0, done.err
            known[family] = facts(workdir), time.monotonic() - began
            shutil.rmtree(workdir)
        return known[family]

    return of


def finished(armed, command, workdir, wanted, asked: bool = False) -> None:
    """Run a command to its end; it has to leave what an undisturbed one leaves, and no more.

    Where it was `asked` to stop, the step that it saved may be kept in an earlier one's place.
    """
    done = armed(*command)
    assert done.code == 0, done.err
    found = facts(workdir)
    if asked:
        found, wanted = kept_by(found, wanted), kept_by(wanted, found)
        assert "checkpoints/step_00000008/manifest.json" in found
    assert differences(found, wanted) == []
    assert leftovers(workdir) == []


def kept_by(some: dict, others: dict) -> dict:
    """Return the facts of a directory without those of checkpoints that another one lacks."""
    return {k: v for k, v in some.items() if k in others or not k.startswith("checkpoints/")}


@pytest.mark.parametrize("family", FAMILIES)
def test_killed_runs_end_as_if_never_killed(armed, root, undisturbed, count, family):
    wanted, seconds = undisturbed(family)
    draw, kills, runs = random.Random(family), 0, 0
    while kills < KILLS:
        workdir, runs = root / f"run{runs}", runs + 1
        command = fault_recipes.command(family, root, workdir)
        for _ in range(draw.randint(1, 3)):
            after = draw.uniform(0, seconds)
            with shim.Plan(root, signal=signal.SIGKILL, after=after) as plan:
                done = armed(*command, plan=plan)
            assert done.code in (0, -signal.SIGKILL), (after, done.err)
            kills += done.code != 0
        finished(armed, command, workdir, wanted)
        shutil.rmtree(workdir)
    count("random kills", kills=kills, runs=runs)


@pytest.mark.parametrize("number", selection([signal.SIGTERM, signal.SIGINT], 1))
def test_a_run_that_is_asked_to_stop_goes_on_as_if_never_stopped(
    armed, root, undisturbed, count, number
):
    wanted, _ = undisturbed("regression")
    draw, codes = random.Random(int(number)), []
    for run in range(12 if ALL else 1):
        workdir = root / f"stopped{run}"
        command = fault_recipes.command("regression", root, workdir)
        with shim.Plan(workdir, "signal", at=draw.randint(100, 300), signal=number) as plan:
            done = armed(*command, plan=plan)
        codes.append(done.code)
        assert done.code in (0, 75) and len(done.errors) == (done.code != 0), done.err
        finished(armed, command, workdir, wanted, asked=done.code == 75)
        shutil.rmtree(workdir)
    assert 75 in codes
    count(signal.Signals(number).name, signals=len(codes))


@pytest.mark.skipif(not ALL, reason="make faults: a run that waits costs its time")
def test_a_run_that_was_stopped_for_a_while_has_the_same_bits(armed, root, undisturbed, count):
    wanted, seconds = undisturbed("lstm")
    workdir = root / "paused"
    (running,) = armed.start([fault_recipes.command("lstm", root, workdir)])
    draw, pauses = random.Random(0), 4 if ALL else 1
    for _ in range(pauses):
        time.sleep(draw.uniform(0.1, 0.8) * seconds / pauses)
        running.signal(signal.SIGSTOP)
        time.sleep(0.5)
        running.signal(signal.SIGCONT)
    assert running.wait(60).code == 0
    assert differences(facts(workdir), wanted) == []
    shutil.rmtree(workdir)
    count("SIGSTOP, SIGCONT", signals=pauses)


def alive(pid: int) -> bool:
    """Return whether a process runs, and is no zombie."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def children(pid: int) -> list[int]:
    """Return the processes that a process has started."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/stat") as file:
                parent = int(file.read().rsplit(")", 1)[1].split()[1])
        except OSError:
            continue
        found += [int(name)] * (parent == pid)
    return found


def test_what_a_killed_command_had_started_ends_and_writes_no_more(armed, tmp_path, count):
    (tmp_path / "text.txt").write_text("\n\n".join(["the sea was calm and grey " * 400] * 700))
    data = fault_recipes.TEXT | {"path": f"{tmp_path}/text.txt", "workers": 2}
    recipe = fault_recipes.recipe("lstm", tmp_path) | {"data": data}
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    command = ["tokenize", f"--config={tmp_path}/recipe.json", f"--workdir={tmp_path}/run"]
    (running,) = armed.start([command])
    workers: list[int] = []
    running.until(lambda: workers.extend(children(running.pid)) or len(set(workers)) >= 2)
    running.until(lambda: list((tmp_path / "run").rglob("*.npz")) != [])
    running.kill()
    end = time.monotonic() + 20
    while any(map(alive, workers)) and time.monotonic() < end:
        time.sleep(0.05)
    assert not any(map(alive, workers))

    def times():
        return {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}

    before = times()
    time.sleep(0.3)
    assert times() == before
    assert armed(*command).code == 0 and leftovers(tmp_path / "run") == []
    count("death of the parent", kills=1)
