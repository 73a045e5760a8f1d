"""SIGTERM, SIGINT and SIGHUP, whatever the main thread waits for.

Python runs a handler in the main thread, between two bytecodes: not while a library computes,
compiles or waits for another process. So the numbers of signals are also written to a pipe, which
a thread of ours reads.
"""

import _thread
import atexit
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable

from flaxlm.errors import FlaxlmError, Interrupted, Preempted
from flaxlm.processes import ending
from flaxlm.processes.group import current
from flaxlm.progress import pulse

NUMBERS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)  # the last of a terminal that is gone


class Signals:
    """What a process was asked by signals.

    Outside of a training loop a signal raises KeyboardInterrupt, as there is nothing to save; where
    that does not get through, the process ends nevertheless. A loop saves first, see `Interrupt`.
    A second SIGINT ends the process at once.
    """

    def __init__(self):
        self.asked = 0  # the number of the first signal
        self.holding = False  # whether a loop looks at `asked`
        self.interrupted = 0  # the number of a signal that has interrupted the main thread
        self._command = False
        self._interrupts = self._handled = 0
        self._pipe: tuple[int, int] | None = None

    def listen(self, command: bool = False) -> contextlib.ExitStack:
        """Take the signals over, in the main thread; return what gives them back at its close.

        `command` is whether the process is ours to end; else its main thread alone is interrupted.
        """
        ends = contextlib.ExitStack()
        if self._pipe or threading.current_thread() is not threading.main_thread():
            return ends
        self._command = command
        reading, writing = self._pipe = os.pipe()
        os.set_blocking(writing, False)
        for number in NUMBERS:
            # A shell has its background jobs ignore Ctrl-C, which is meant for those in front, and
            # `nohup` the end of the terminal.
            if signal.getsignal(number) != signal.SIG_IGN:
                ends.callback(signal.signal, number, signal.signal(number, self._handle))
        ends.callback(self._forget, writing)
        ends.callback(
            signal.set_wakeup_fd, signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        )
        if command:
            sys.unraisablehook = self._again
            atexit.register(self._ignore)  # the first to be registered is the last to be called
        threading.Thread(target=self._read, args=(reading,), daemon=True).start()
        return ends

    @staticmethod
    def _ignore() -> None:
        """Let no signal change the exit code of a process that has done all it had to do.

        An interpreter that is torn down gives signals their default action back, which kills.
        """
        for number in NUMBERS:
            signal.signal(number, signal.SIG_IGN)

    def _forget(self, writing: int) -> None:
        os.close(writing)
        self._pipe, self.asked, self._interrupts, self._handled = None, 0, 0, 0

    def _handle(self, number: int, frame) -> None:
        self._handled += number == signal.SIGINT
        if ending.unwound.is_set():
            return
        if not self.holding or self._handled > 1 or ending.unwinding.is_set():
            if _importing(frame):
                _interrupt_again()
                return
            self.interrupted = number
            raise KeyboardInterrupt

    @staticmethod
    def _again(lost) -> None:
        """Interrupt once more where that came in a place from which nothing can be raised."""
        if isinstance(lost.exc_value, KeyboardInterrupt):
            _interrupt_again()
        else:
            sys.__unraisablehook__(lost)

    def _read(self, reading: int) -> None:
        while numbers := os.read(reading, 64):
            for number in filter(NUMBERS.__contains__, numbers):
                self.note(number)
        os.close(reading)

    def note(self, number: int) -> None:
        """Take note of a signal."""
        self._interrupts += number == signal.SIGINT
        if self._interrupts > 1 and self._command:
            ending.end(
                Interrupted.exit_code,
                "interrupted twice, and ended at once: what was not saved before is lost; the same "
                "command goes on from the newest checkpoint",
            )
        if not self.asked:
            self.asked = number
            if not self.holding:
                self.insist()
            elif ending.group:
                ending.group.ask_stop()

    def insist(self) -> None:
        """End the process soon, unless it ends by itself or a loop takes over."""
        if self._command:
            timer = threading.Timer(ending.GRACE, self._insist)
            timer.daemon = True
            timer.start()

    def _insist(self) -> None:
        if not self.holding:
            ending.end(Preempted.exit_code, self.reason())

    def unless_heard(self, error: FlaxlmError) -> Callable[[], None]:
        """End a process of ours soon for an error that a thread met; return what keeps it alive.

        The main thread, which is to raise the error, may be in a step that takes minutes.
        """
        timer = threading.Timer(ending.GRACE, ending.end, (error.exit_code, str(error)))
        timer.daemon = True
        if self._command:
            timer.start()
        return timer.cancel

    def reason(self) -> str:
        """Return the line of a process that had nothing to save."""
        name = signal.Signals(self.asked or self.interrupted or signal.SIGINT).name
        return (
            f"asked to stop ({name}) at {pulse.what}, with nothing to be "
            "saved; the same command starts again"
        )


def _importing(frame) -> bool:
    """Return whether a module is being imported: foreign ones crash where that is interrupted."""
    while frame and not frame.f_code.co_filename.startswith("<frozen importlib"):
        frame = frame.f_back
    return frame is not None


def _interrupt_again() -> None:
    again = threading.Timer(0.05, _thread.interrupt_main, (signal.SIGTERM,))
    again.daemon = True
    again.start()


signals = Signals()


class Interrupt:
    """Remembers a signal until the step in flight has ended and is saved.

    Several processes come by `due` the same number of times, and one may be some steps ahead of
    another. Where one of them was asked to stop, each waits at its next call until all have told
    how often they were there, and all stop at the highest number: none is beyond it.
    """

    _made = 0

    def __init__(self):
        self._ends = signals.listen()
        signals.holding = True
        self._group = current()
        Interrupt._made += 1
        self._name, self._calls, self._last = f"stop {Interrupt._made}", 0, None

    def due(self) -> bool:
        """Return whether the run should save and exit: called after each step."""
        group = self._group
        if not group:
            return bool(signals.asked)
        self._calls += 1
        if group.stop is not None and self._last is None:
            self._last = max(group.settle(self._name, self._calls))
        return self._last is not None and self._calls >= self._last

    def check(self) -> None:
        """Raise GivenUp if the run was asked to stop; called between evaluation batches."""
        if self.due():
            raise GivenUp

    def close(self) -> None:
        """Leave signals to those who listened before."""
        if self._group and self._last is None:  # the others need not stop for this one any more
            self._group.post(self._name, self._calls + 1)
        signals.holding = False
        self._ends.close()
        if signals.asked:
            signals.insist()


class GivenUp(Exception):
    """The run was asked to stop in the middle of an evaluation."""
