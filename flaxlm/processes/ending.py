"""The end of a process, from whichever thread: one `error:` line, then the exit code."""

import _thread
import contextlib
import os
import signal
import sys
import threading
import time

from flaxlm.errors import Preempted, Stuck
from flaxlm.untrusted import printable

# What takes longer to unwind, once the process was told to end, is not waited for: it waits for
# another thread or process, or computes in foreign code.
GRACE = 2.0  # seconds

group = None  # the `Group` that this process is one of: its end is the end of all
unwinding = threading.Event()  # the main thread is to give back what it holds
unwound = threading.Event()  # and has, or was at its end
_leaving = threading.Event()  # a thread leaves, which need not be the main thread
_said = threading.Lock()  # held from the first line on: there is one


def end(code: int, message: str) -> None:
    """End this process, and with it all others of its group; does not return."""
    if group:
        # All stop where one was asked to: it is the one that is named.
        asked = code == Preempted.exit_code and group.stop is not None
        group.end(code, f"process {group.stop if asked else group.index}: {message}")
    else:
        finish(code, message)


def finish(code: int, message: str, unwind: bool = True, last=lambda: None) -> None:
    """Say why this process ends, and leave it; does not return.

    `unwind` lets the main thread give back first what it holds, as the names of unfinished files;
    `last` is called before the process is left.
    """
    if say(message):
        _leaving.set()
        if unwind:
            _unwind()
        last()
        leave(code)
    if not _leaving.is_set():  # the main thread has said why, and is about to end
        time.sleep(GRACE)
        leave(code)
    stay()


def stay() -> None:
    """Wait for the thread that ends the process; does not return."""
    if threading.current_thread() is threading.main_thread():
        unwound.set()
    time.sleep(60)
    leave(Stuck.exit_code)


def say(message: str) -> bool:
    """Print the `error:` line of the process, whatever a library put into it, unless one stands."""
    if not _said.acquire(blocking=False):
        return False
    cursor = "\033[?25h" if sys.stderr and sys.stderr.isatty() else ""  # a bar has hidden it
    # Where nobody can be told, the exit code still tells.
    with contextlib.suppress(OSError, AttributeError):
        print(f"{cursor}error: {printable(' '.join(message.split()))}", file=sys.stderr, flush=True)
    return True


def _unwind() -> None:
    if threading.current_thread() is not threading.main_thread():
        unwinding.set()
        _thread.interrupt_main(signal.SIGTERM)  # see `Signals`
        unwound.wait(GRACE)


def leave(code: int) -> None:
    """End the process at once, past what waits for threads and other processes at exit."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, AttributeError, ValueError):
            stream.flush()
    os._exit(code)
