"""How a process ends other than by finishing: by a signal, or because it is stuck."""

from flaxlm.processes.signals import GivenUp, Interrupt, signals
from flaxlm.processes.watchdog import Watchdog

__all__ = ["GivenUp", "Interrupt", "Watchdog", "signals"]
