"""Whatever was damaged or killed, a restore gives what was written or says what is damaged."""

import logging
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import checkpoint_child as child
import numpy as np
import pytest
from checkpoint_cases import (
    leaf_bytes,
    make_state,
)

from flaxlm.errors import StorageError
from flaxlm.training.checkpoint import CheckpointConfig, Checkpointer
from flaxlm.training.config import EvalConfig
from flaxlm.training.reading import find

CHILD = Path(child.__file__)


# Damage.


def flip_in_leaf(run, step_directory):
    path, offset = leaf_bytes(step_directory, make_state(3).params["layers"]["kernel"])
    child.flip(path, 8 * (offset + 5000) + 3)


def remove_half(run, step_directory):
    files = sorted(p for p in step_directory.rglob("*") if p.is_file() and p.name[0] != "m")
    for path in files[::2]:
        path.unlink()


def truncate_data(run, step_directory):
    path, _ = leaf_bytes(step_directory, make_state(3).params["table"])
    os.truncate(path, path.stat().st_size // 2)


def edit_manifest(run, step_directory):
    path = step_directory / "manifest.json"
    path.write_text(path.read_text().replace('"c0"', '"c1"'))


DAMAGE = {
    "a flipped bit in a leaf": (flip_in_leaf, "leaf params/layers/kernel is not what was written"),
    "an emptied directory": (
        lambda run, step: (shutil.rmtree(step), step.mkdir()),
        "manifest.json is missing",
    ),
    "no manifest": (
        lambda run, step: (step / "manifest.json").unlink(),
        "manifest.json is missing",
    ),
    "half the files deleted": (remove_half, "cannot be read"),
    "truncated arrays": (truncate_data, "damaged: leaf "),
    "no arrays": (lambda run, step: shutil.rmtree(step / "state"), "arrays cannot be read"),
    "an edited manifest": (edit_manifest, "checksum differs"),
    "a garbled manifest": (
        lambda run, step: (step / "manifest.json").write_bytes(b"\0\xff{"),
        "manifest.json cannot be read",
    ),
    "a flipped bit in the config": (
        lambda run, step: child.flip(step / "config.json", 9),
        "file config.json is not what was written",
    ),
    "no tokenizer": (
        lambda run, step: shutil.rmtree(step / "tokenizer"),
        "file tokenizer/model cannot be read",
    ),
    "another step's directory": (
        lambda run, step: (
            shutil.rmtree(step),
            shutil.copytree(step.with_name("step_00000001"), step),
        ),
        "is of step 1",
    ),
}


@pytest.mark.parametrize("name", ["no manifest", "an edited manifest", "a garbled manifest"])
@pytest.mark.parametrize("word", ["", "latest", "2"])
def test_a_reader_says_that_a_step_is_not_known(copied, caplog, name, word):
    harm, message = DAMAGE[name]
    harm(copied, Checkpointer(copied).path(3))
    with caplog.at_level(logging.WARNING, "flaxlm"):
        source = find(copied, word, EvalConfig())
    assert source.step == 2
    told = caplog.text.count("checkpoint step 3") == 1 and message in caplog.text
    assert told == (word != "2"), caplog.text


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_named_and_the_step_before_is_used(copied, abstract, caplog, name):
    harm, message = DAMAGE[name]
    saver = Checkpointer(copied, CheckpointConfig(keep=3))
    harm(copied, saver.path(3))
    with caplog.at_level(logging.WARNING, "flaxlm"):
        got, record = saver.restore(abstract)
    assert record.step == 2 and child.equal(got, make_state(2))
    assert "checkpoint step 3" in caplog.text and message in caplog.text
    assert "using checkpoint step 2" in caplog.text
    assert len(saver.damage) == 1
    # It is out of the way: not chosen, and its number is free; a good step clears it away.
    assert saver.steps() == [1, 2] and (saver.root / "damaged_step_00000003").is_dir()
    saver.save(3, make_state(3), wait=True)
    assert child.equal(Checkpointer(copied).restore(abstract)[0], make_state(3))
    assert sorted(p.name for p in saver.root.iterdir()) == [f"step_0000000{i}" for i in (1, 2, 3)]


def test_no_flip_anywhere_is_ever_restored_silently(copied, abstract):
    reader = Checkpointer(copied, read_only=True)
    directory = reader.path(3)
    files = sorted(p for p in directory.rglob("*") if p.is_file())
    sizes = np.array([p.stat().st_size for p in files])
    rng = np.random.default_rng(3)
    steps = []
    # By file as well as by byte: the small ones hold what the large ones are read by.
    chosen = [*files, *rng.choice(files, 25, p=sizes / sizes.sum())]
    for path in chosen:
        if not path.stat().st_size:
            continue
        bit = int(rng.integers(8 * path.stat().st_size))
        child.flip(path, bit)
        got, record = reader.restore(abstract)
        assert child.equal(got, make_state(record.step)), (path, bit)
        steps.append(record.step)
        child.flip(path, bit)
    # Most bytes are those of arrays, and there a flip is always found.
    assert steps.count(2) > len(steps) / 2
    assert reader.restore(abstract)[1].step == 3


def test_when_all_are_damaged_each_is_listed_and_nothing_starts_fresh(copied, abstract):
    saver = Checkpointer(copied)
    flip_in_leaf(copied, saver.path(3))
    (saver.path(2) / "config.json").unlink()
    shutil.rmtree(saver.path(1) / "state")
    with pytest.raises(StorageError) as error:
        saver.restore(abstract)
    for part in (
        "step 3: leaf params/layers/kernel",
        "step 2: file config.json",
        "step 1: the arr",
    ):
        assert part in str(error.value)
    for step in (1, 2, 3):
        shutil.rmtree(saver.path(step))
        saver.path(step).mkdir()
    with pytest.raises(StorageError, match="1, 2, 3"):
        Checkpointer(copied).latest()


def test_a_step_asked_for_has_no_stand_in(copied, abstract):
    saver = Checkpointer(copied)
    flip_in_leaf(copied, saver.path(3))
    with pytest.raises(StorageError, match="step 3: leaf params/layers/kernel"):
        saver.restore(abstract, step=3)
    assert saver.restore(abstract, step=1)[1].step == 1


def test_a_reader_moves_and_cleans_nothing(copied, abstract):
    def names():
        return sorted(str(p) for p in copied.rglob("*"))

    shutil.rmtree(copied / "checkpoints" / "step_00000003" / "state")
    (copied / "checkpoints" / ".writing-step_00000004").mkdir()
    before = names()
    assert Checkpointer(copied, read_only=True).restore(abstract)[1].step == 2
    assert names() == before


# Kills.


def test_unfinished_saves_are_cleaned_and_finished_ones_get_their_name(copied, abstract):
    root = copied / "checkpoints"
    (root / ".writing-step_00000004" / "state").mkdir(parents=True)
    shutil.copytree(root / "step_00000001", root / ".trash-step_00000001")
    # Killed between the manifest and the rename: all of it is on the disk.
    os.rename(root / "step_00000003", root / ".writing-step_00000003")
    saver = Checkpointer(copied)
    assert sorted(p.name for p in root.iterdir()) == [f"step_0000000{i}" for i in (1, 2, 3)]
    assert child.equal(saver.restore(abstract)[0], make_state(3))


def test_kill_9_at_any_moment_leaves_only_good_checkpoints(tmp_path):
    rng = random.Random(0)
    environment = os.environ | {"PYTHONPATH": str(CHILD.parents[1]), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, str(CHILD), "forks", str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    last, unfinished, seen = 0, 0, set()
    with subprocess.Popen(command, env=environment, **pipes) as saver:
        for kill in range(100):
            # Until kills have met saves under way, and runs have gone on from each other.
            if unfinished >= 5 and len(seen) >= 10:
                break
            saver.stdin.write("\n")
            saver.stdin.flush()
            pid = int(saver.stdout.readline())
            time.sleep(rng.uniform(0, 0.3 + kill / 50))  # a slow machine gets its time
            os.kill(pid, signal.SIGKILL)
            unfinished += any((tmp_path / "checkpoints").glob(".*"))
            reader = Checkpointer(tmp_path, read_only=True)
            for step in reader.steps():
                state, record = reader.restore(child.abstract(), step=step)
                assert record.step == step and child.equal(state, child.expected(step))
            assert (reader.latest() or 0) >= last and reader.damage == []
            last = reader.latest() or 0
            seen.add(last)
        saver.stdin.close()
    assert saver.returncode == 0 and unfinished >= 5 and len(seen) >= 10


# Several processes.


def test_two_processes_save_together_and_go_back_together(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = os.environ | {
        "PYTHONPATH": str(CHILD.parents[1]),
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "2",
        "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
    }
    processes = [
        subprocess.Popen(
            [sys.executable, str(CHILD), "distributed", str(tmp_path), str(i), port],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    for process in processes:
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err[-3000:]
        assert "restored 2 same True damaged 2" in out
    saver = Checkpointer(tmp_path)
    assert saver.steps() == [1, 2]
    got, record = saver.restore(child.abstract())
    assert record.step == 2 and child.equal(got, child.expected(2))
    assert record.mesh == {"data": 4}
