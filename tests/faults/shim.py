"""The plan of a fault, which `shim.c` carries out in a command or a process that is preloaded.

    with Plan(root, "enospc", at=7) as plan:     # the seventh change to a file under root
        done = line("train", …, plan=plan)
    assert plan.fired and done.code == 74

A sweep counts the points of an operation once and faults it at each, as SQLite's tests do.
"""

import atexit
import ctypes
import errno
import functools
import mmap
import os
import pathlib
import re
import shutil
import subprocess
import tempfile
import time

WRITE, SYNC, RENAME, REMOVE, MAKE, SIZE = 1, 2, 4, 8, 16, 32
EVERY = WRITE | SYNC | RENAME | REMOVE | MAKE | SIZE
SPACE = WRITE | SYNC | MAKE | SIZE  # what a full disk refuses: names are still changed and removed

COUNT, KILL_BEFORE, KILL_AFTER, FAIL, NOTIFY = range(5)
# {fault: fields of the plan}; `full` is a disk that stays full, `short` one that fills in a write.
FAULTS = {
    "count": {"action": COUNT},
    "kill": {"action": KILL_BEFORE},
    "killed after": {"action": KILL_AFTER},
    "signal": {"action": NOTIFY},
    "enospc": {"action": FAIL, "error": errno.ENOSPC, "kinds": SPACE},
    "eio": {"action": FAIL, "error": errno.EIO},
    "full": {"action": FAIL, "error": errno.ENOSPC, "kinds": SPACE, "sticky": 1},
    "short": {"action": FAIL, "error": errno.ENOSPC, "kinds": SPACE, "sticky": 1, "shorten": 1},
    "quota": {"action": FAIL, "error": errno.EDQUOT, "kinds": SPACE, "sticky": 1},
    "broken": {"action": FAIL, "error": errno.EIO, "sticky": 1},
}


def counts(fault: str, call: str) -> bool:
    """Return whether a call, by name, is a point of a fault: a full disk refuses no renaming."""
    only_names = re.match("rename|link|symlink|unlink|rmdir", call)
    return "kinds" not in FAULTS[fault] or not only_names


@functools.cache
def library() -> pathlib.Path | None:
    """Return the compiled shim, made at first use; None where there is no compiler for it."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if not compiler or os.uname().sysname != "Linux":
        return None
    source = pathlib.Path(__file__).with_name("shim.c")
    target = pathlib.Path(tempfile.mkdtemp(prefix="flaxlm-faults-")) / "shim.so"
    atexit.register(shutil.rmtree, target.parent, ignore_errors=True)
    made = subprocess.run(
        [compiler, "-O1", "-shared", "-fPIC", "-o", target, source, "-ldl", "-lrt"],
        capture_output=True,
        timeout=60,
    )
    return target if made.returncode == 0 else None


class _Fields(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int32) for name in ("action", "error", "sticky", "shorten")),
        *((name, ctypes.c_int32) for name in ("kinds", "signal")),
        *((name, ctypes.c_int64) for name in ("delay", "at", "seen", "fired", "failed")),
        *((name, ctypes.c_int64) for name in ("process", "used")),
        ("directory", ctypes.c_char * 1024),
        ("what", ctypes.c_char * 1200),
        ("trace", ctypes.c_char * (1 << 18)),
    ]


class Plan:
    """One fault for one command, and what came of it; a context manager.

    Args:
      root: the directory whose files count; the command's own output must lie elsewhere.
      fault: one of FAULTS.
      at: the point, from 1; 0 only counts.
      signal, after: a signal to send, that many seconds after the command has begun; of the fault
        `signal` at the point instead.
      fields: others of the plan, instead of the fault's.
    """

    def __init__(self, root, fault: str = "count", at: int = 0, signal=0, after=0.0, **fields):
        handle, name = tempfile.mkstemp(prefix="flaxlm-plan-")
        os.ftruncate(handle, ctypes.sizeof(_Fields))
        self.path = pathlib.Path(name)
        self._map = mmap.mmap(handle, ctypes.sizeof(_Fields))
        os.close(handle)
        self._fields = _Fields.from_buffer(self._map)
        facts = {"kinds": EVERY} | FAULTS[fault] | fields
        facts |= {"at": at, "signal": int(signal), "delay": max(int(after * 1e9), 1)}
        facts |= {"directory": os.fsencode(os.path.realpath(root))}
        for field, value in facts.items():
            setattr(self._fields, field, value)

    def __getattr__(self, name: str):
        value = getattr(self._fields, name)
        return value.decode(errors="replace") if isinstance(value, bytes) else value

    def points(self) -> list[str]:
        """Return the calls and paths of the points met, in order."""
        return self.trace.splitlines()

    def seconds_since(self) -> float:
        """Return the seconds since the fault first fired."""
        return time.time() - self.failed / 1e9

    def __enter__(self) -> "Plan":
        return self

    def __exit__(self, *exception) -> None:
        self.path.unlink(missing_ok=True)


def arm(path: str) -> None:
    """Carry out the plan in this process, which was started with the shim preloaded."""
    if ctypes.CDLL(None).faults_arm(os.fsencode(path)):
        raise OSError(f"the fault plan {path} cannot be armed")
