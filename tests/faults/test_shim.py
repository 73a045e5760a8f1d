"""The shim counts every change under a directory, from any thread, and faults the n-th."""

import errno

import pytest
import shim

CHANGES = """
import os, pathlib, shutil, sys, threading
root = pathlib.Path(sys.argv[1])
root.mkdir(exist_ok=True)
def write():
    with open(root / "a", "wb") as file:
        file.write(b"12345678")
        file.flush()
        os.fsync(file.fileno())
try:
    thread = threading.Thread(target=write)
    thread.start()
    thread.join()
    os.rename(root / "a", root / "b")
    shutil.copyfile(root / "b", root / "c")
    os.unlink(root / "b")
    os.open(root / "d", os.O_WRONLY | os.O_CREAT)
    os.posix_fallocate(os.open(root / "d", os.O_WRONLY), 0, 10)
except OSError as error:
    print(error.errno)
(root.parent / "elsewhere").write_text("not counted")
"""
POINTS = ("mkdir open64 write fsync rename open64 sendfile64 sendfile64 unlink open64").split()
POINTS += ["posix_fallocate64"]


@pytest.fixture
def script(armed, tmp_path):
    path = tmp_path / "changes.py"
    path.write_text(CHANGES)

    def run(fault="count", at=0, **fields):
        with shim.Plan(tmp_path / "root", fault, at, **fields) as plan:
            return armed(str(path), str(tmp_path / "root"), plan=plan), plan

    return run


def test_every_change_is_a_point(script):
    done, plan = script()
    assert done.code == 0 and not plan.fired
    assert [line.split()[0] for line in plan.points()] == POINTS


@pytest.mark.parametrize("at", [1, 3, 5, len(POINTS)])
def test_a_kill_falls_before_or_after_its_call(script, tmp_path, at):
    for fault in ("kill", "killed after"):
        done, plan = script(fault, at)
        assert (done.code, plan.seen, plan.fired) == (-9, at, 1)
        assert plan.what == plan.points()[at - 1]
        if at == 1:
            assert (tmp_path / "root").exists() == (fault == "killed after")
        if at == 5:
            assert (tmp_path / "root" / "b").exists() == (fault == "killed after")
            (tmp_path / "root" / "b").unlink(missing_ok=True)


def test_a_call_fails_once_or_from_then_on_or_in_the_middle_of_a_write(script, tmp_path):
    done, plan = script("eio", 5)  # the renaming, and with it all the rest
    assert (done.code, plan.seen, plan.fired) == (0, 5, 1) and done.out == f"{errno.EIO}\n"
    done, plan = script("full", 5)  # the fifth that takes space: renaming takes none
    assert done.out == f"{errno.ENOSPC}\n" and plan.what.startswith("open64")
    done, plan = script("short", 2, kinds=shim.WRITE)
    assert done.out == f"{errno.ENOSPC}\n" and (tmp_path / "root" / "c").stat().st_size == 1
    assert script("eio", 99)[1].fired == 0


def test_a_signal_comes_at_its_time(script):
    assert script(signal=9, after=0.001)[0].code == -9
