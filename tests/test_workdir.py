"""One run a workdir, and a disk that is full or fails ends the run with one clear line."""

import concurrent.futures
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import checkpoint_child as child
import jax.numpy as jnp
import pytest
from checkpoint_cases import (
    abstract_of,
    make_state,
)

from flaxlm.errors import StorageError, Unsafe
from flaxlm.training import store, workdir
from flaxlm.training.checkpoint import Checkpointer
from flaxlm.training.workdir import Workdir, probe

CHILD = Path(child.__file__)


def test_a_workdir_has_one_run_and_death_frees_it(tmp_path):
    code = (
        "import sys, time; from flaxlm.training.workdir import Workdir\n"
        f"w = Workdir({str(tmp_path)!r}); print('held', flush=True); time.sleep(60)"
    )
    environment = os.environ | {"PYTHONPATH": str(CHILD.parents[1])}
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(Unsafe, match=f"process {holder.pid} on"):
            Workdir(tmp_path)
        Workdir(tmp_path, lock=False)
        holder.kill()
    with Workdir(tmp_path), pytest.raises(Unsafe, match=f"process {os.getpid()}"):
        Workdir(tmp_path)
    Workdir(tmp_path).close()


def test_a_forked_child_does_not_hold_the_lock(tmp_path):
    code = (
        "import os, time; from flaxlm.training.workdir import Workdir\n"
        f"w = Workdir({str(tmp_path)!r})\n"
        "child = os.fork()\n"
        "if not child: time.sleep(60)\n"
        "print(child, flush=True)"
    )
    environment = os.environ | {"PYTHONPATH": str(CHILD.parents[1])}
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as parent:
        orphan = int(parent.stdout.readline())
        parent.wait()
        try:
            Workdir(tmp_path).close()
        finally:
            os.kill(orphan, signal.SIGKILL)


def test_a_full_or_unwritable_disk_is_said_before_training(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    for make in (Workdir, probe, Checkpointer):
        with pytest.raises(StorageError, match="cannot write in"):
            make(tmp_path / "file" / "below")
    Checkpointer(tmp_path).probe(abstract_of(make_state()))
    assert not list(tmp_path.glob("checkpoints/.*"))
    free = shutil._ntuple_diskusage(total=10**9, used=0, free=30_000)
    monkeypatch.setattr(workdir.shutil, "disk_usage", lambda path: free)
    with pytest.raises(
        StorageError, match=r"has 30,000 bytes free and checkpoints need 1\d\d,\d\d\d b"
    ):
        Checkpointer(tmp_path).probe(abstract_of(make_state()))
    with pytest.raises(StorageError, match="free the disk"):
        Checkpointer(tmp_path).save(1, make_state())


def test_a_disk_that_fills_up_ends_the_run_and_spares_what_was_saved(tmp_path):
    code = f"""
import resource, sys, time
import jax, jax.numpy as jnp
from flaxlm.errors import StorageError
from flaxlm.training.checkpoint import Checkpointer
from flaxlm.training.workdir import probe
saver = Checkpointer({str(tmp_path)!r})
saver.save(1, {{"x": jnp.ones((300, 300))}}, wait=True)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
saver.save(2, {{"x": jnp.zeros((300, 300)) + jnp.arange(300.0)}})
for how in (saver.wait, lambda: probe({str(tmp_path)!r}, 400_000)):
    try:
        how()
    except StorageError as error:
        print(error)
saver.wait()
"""
    environment = os.environ | {"PYTHONPATH": str(CHILD.parents[1]), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    late, early = done.stdout.splitlines()
    assert "step 2 was not saved" in late and "the last good one is step 1" in late
    assert "cannot write in" in early
    assert os.listdir(tmp_path / "checkpoints") == ["step_00000001"]


def test_a_failing_save_is_raised_at_the_next_call(tmp_path, monkeypatch, caplog):
    saver = Checkpointer(tmp_path)
    saver.save(1, {"x": jnp.ones(4)}, wait=True)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store.Store, "commit", full)
    saver.save(2, {"x": jnp.zeros(4)})
    said = r"No space left on device \(4,096 bytes needed, .* free\); the last good one is step 1"
    with pytest.raises(StorageError, match=said):
        saver.save(3, {"x": jnp.zeros(4)})
    saver.save(4, {"x": jnp.zeros(4)})
    saver._thread.join()
    with pytest.raises(StorageError, match="step 4"):
        saver.poll()
    saver.poll()
    # What ended the run is not hidden behind the save that failed too.
    with pytest.raises(ZeroDivisionError), saver:
        saver.save(5, {"x": jnp.zeros(4)})
        _ = 1 / 0
    assert "step 5 was not saved" in caplog.text
    assert saver.steps() == [1]


def test_saved_is_said_only_after_the_commit(tmp_path, monkeypatch, caplog):
    gate, deadline = [], time.monotonic() + 10
    commit = store.Store.commit

    def slow(self, record, files):
        while not gate and time.monotonic() < deadline:
            time.sleep(0.01)
        return commit(self, record, files)

    monkeypatch.setattr(store.Store, "commit", slow)
    with caplog.at_level(logging.INFO, "flaxlm"), Checkpointer(tmp_path) as saver:
        saver.save(1, {"x": jnp.ones(4)})
        assert "saved" not in caplog.text and saver.latest() is None
        gate.append(True)
        saver.wait()
        assert "saved" in caplog.text and saver.latest() == 1


def test_several_try_at_once_whether_they_can_write(tmp_path):
    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        for _ in threads.map(probe, [tmp_path] * 200):
            pass
    assert not list(tmp_path.iterdir())


def test_what_a_killed_probe_left_goes_with_the_next(tmp_path):
    left = tmp_path / ".probe.0123456789abcdef.tmp"
    left.write_bytes(b"1")
    workdir.probe(tmp_path)
    assert list(tmp_path.iterdir()) == []
