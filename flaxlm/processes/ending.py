"""The end of a process, from whichever thread: one `error:` line, then the exit code."""

import os
import sys
import threading
import time

from flaxlm.untrusted import printable

# What a library does after this time, once the process was told to end, is not waited for: an
# unwinding that waits for another thread or process, an interpreter that waits for its threads.
GRACE = 3.0  # seconds

_said = threading.Lock()  # held from the first line on: there is one


def say(message: str) -> bool:
    """Print the `error:` line of the process, whatever a library put into it, unless one stands."""
    if not _said.acquire(blocking=False):
        return False
    cursor = "\033[?25h" if sys.stderr.isatty() else ""  # a bar has hidden it
    print(f"{cursor}error: {printable(' '.join(message.split()))}", file=sys.stderr, flush=True)
    return True


def leave(code: int) -> None:
    """End the process at once, past what waits for threads and other processes at exit."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


def end(code: int, message: str) -> None:
    """Say why and leave; where another thread has said why, it is the one that leaves."""
    if not say(message):
        time.sleep(2 * GRACE)
    leave(code)
