"""How processes end other than by finishing, and several as one.

A signal (`signals`) and what hangs (`watchdog`) end a process, and any end of one of a `group` is
the end of all: with one line and one exit code (`ending`).
"""

from flaxlm.processes.group import broke, current
from flaxlm.processes.signals import GivenUp, Interrupt, signals
from flaxlm.processes.watchdog import Watchdog

__all__ = ["GivenUp", "Interrupt", "Watchdog", "barrier", "broke", "current", "gather", "signals"]


def gather(name: str, value=None) -> list:
    """Return what each process gives (JSON), by its index; all processes call it in one order.

    `name` is what the others wait for, for a person. No wait is without an end: a process that
    died, stopped or hangs ends all, see `Group`.
    """
    group = current()
    return group.gather(name, value) if group else [value]


def barrier(name: str) -> None:
    """Wait until every process is here; see `gather`."""
    gather(name)
