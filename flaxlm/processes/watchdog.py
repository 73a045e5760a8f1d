"""A hung collective, disk or download never returns, and never raises."""

import threading
import time

from flaxlm.errors import Stuck
from flaxlm.processes import ending
from flaxlm.progress import pulse

LOOK = 1.0  # seconds between two looks


def late(seconds: float, what: str) -> str:
    """Return the line about what has not ended."""
    return (
        f"waited {seconds:g} s (train.stuck_after) for {what}, and it has not ended; if that is "
        "not long for it, raise train.stuck_after"
    )


class Watchdog:
    """Ends the process if for `seconds` nothing ends of what it is at, see `progress.pulse`.

    So do other processes of its group if one of them is silent so long. Time in which the process
    itself was stopped is not counted. 0 seconds: never.
    """

    def __init__(self, seconds: float):
        self.seconds, self._closed = seconds, threading.Event()
        if ending.group:
            ending.group.patience = seconds
        if seconds:
            threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        look = min(LOOK, self.seconds / 4)
        seen, waited, now = -1, 0.0, time.monotonic()
        while not self._closed.wait(look):
            before, now = now, time.monotonic()
            waited += min(now - before, 2 * look)
            if pulse.count != seen or pulse.waits:
                seen, waited = pulse.count, 0.0
            elif waited > self.seconds:
                if ending.group:
                    ending.group.blame(self.seconds)
                ending.end(Stuck.exit_code, late(self.seconds, pulse.what))

    def __enter__(self) -> "Watchdog":
        return self

    def __exit__(self, *exception) -> None:
        self._closed.set()
