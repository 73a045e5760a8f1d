"""A progress bar on a terminal; elsewhere a line now and then. What a process is at, for others."""

import contextlib
import io
import logging
import os
import sys
import time
import traceback
from collections.abc import Iterator
from typing import ClassVar

from flaxlm.errors import StorageError
from flaxlm.untrusted import printable

LINE_EVERY = 5.0  # seconds


class Pulse:
    """What the process is at, and that it comes along: what a watchdog looks at."""

    def __init__(self):
        self.what, self.count, self.waits = "the start", 0, 0

    def note(self, what: str) -> None:
        """Note that something has ended, and what is next."""
        self.what, self.count = what, self.count + 1

    @contextlib.contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Note a wait of which nobody can say how long is too long."""
        before = self.what
        self.note(what)
        self.waits += 1
        try:
            yield
            self.note(before)  # after an error the line about it says where it came from
        finally:
            self.waits -= 1


pulse = Pulse()


class Progress:
    """Context manager that shows how far a long piece of work has come, on standard error.

    Work within other work has its bar below the other's until it is done. `total` is None where it
    is not known in advance, `done` what was done before; both count `scale` to the `unit` (1e6 to
    the "MB"). `quiet` shows nothing (all processes of a run but the first).
    """

    _shown: ClassVar = None  # the one live display of the process

    def __init__(self, title: str, total: int | None, done=0, unit="steps", scale=1.0, quiet=False):
        self.title, self.total, self.done = printable(title), total, done
        self.unit, self.scale, self.quiet = unit, scale, quiet
        self._first, self._bar = done, None

    def __enter__(self) -> "Progress":
        self._before = pulse.what
        pulse.note(self.title or pulse.what)
        self._start = self._said = time.monotonic()
        if sys.stderr.isatty() and not self.quiet:
            self._within = Progress._shown is not None
            if not self._within:
                Progress._shown = _display()
            self._bar = Progress._shown
            self._task = self._bar.add_task(
                self.title, total=self.total, completed=self.done, count=self._count(), text=""
            )
        return self

    def __exit__(self, kind, *exception) -> None:
        if kind is None:  # else, as above
            pulse.note(self._before)
        if self._bar is None:
            return
        if self._within:
            self._bar.remove_task(self._task)
        else:
            self._bar.stop()
            Progress._shown = None

    def add(self, amount: int) -> None:
        """Add `amount` to what is done."""
        self.update(self.done + amount)

    def update(self, done: int, text: str | None = None) -> None:
        """Set what is done and the text beside it, by default the rate.

        Without a terminal each text is a line, an empty one is none; the rate is a line every few
        seconds.
        """
        self.done = done
        pulse.note(self.title or pulse.what)
        now = time.monotonic()
        rate = (done - self._first) / max(now - self._start, 1e-9)
        quiet = self.quiet or text == "" or (text is None and now - self._said < LINE_EVERY)
        text = f"{rate / self.scale:.1f} {self.unit}/s" if text is None else printable(text)
        if self._bar is not None:
            shown = {"text": text} if text else {}
            self._bar.update(self._task, completed=done, count=self._count(), **shown)
        elif not quiet:
            self._said = now
            left = f"  {clock((self.total - done) / rate)} left" if self.total and rate else ""
            note(f"{self.title} {self._count()}  {text}{left}")

    def _count(self) -> str:
        """Return how much is done, of how much."""
        digits = 0 if self.scale == 1 else 1
        done = f"{self.done / self.scale:.{digits}f}"
        total = f"/{self.total / self.scale:.{digits}f}" if self.total else ""
        return f"{done}{total} {self.unit}"


def _display():
    """Return a live display on the terminal, started, with room for bars."""
    from rich import console, progress

    display = progress.Progress(
        progress.TextColumn("{task.description}", markup=False),
        progress.BarColumn(bar_width=24),
        progress.TextColumn("{task.fields[count]}", markup=False),
        progress.TimeRemainingColumn(),
        progress.TextColumn("{task.fields[text]}", markup=False),
        console=console.Console(stderr=True),
        refresh_per_second=4,
    )
    display.start()
    return display


def clock(seconds: float) -> str:
    """Return h:mm:ss, or m:ss below one hour."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def note(message: object) -> None:
    """Print one line on standard error, of controls what they are: see `printable`.

    Where it cannot be written, on a full disk, the work goes on without.
    """
    _write(printable(message))


def note_traceback(error: BaseException | None) -> None:
    """Print the traceback of an error on standard error; see `note`."""
    _write(traceback_of(error))


def _write(text: str) -> None:
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)


class Shown(logging.LogRecord):
    """A record of any library's log, which is a line of what is shown; see `printable`."""

    def getMessage(self) -> str:
        """Return the line; what a traceback quotes is made harmless too."""
        if self.exc_info and not self.exc_text:
            self.exc_text = traceback_of(self.exc_info[1])
        return printable(super().getMessage())


def traceback_of(error: BaseException | None) -> str:
    """Return the traceback of an error, each line of it printable."""
    lines = "".join(traceback.format_exception(error)).splitlines()
    return "\n".join(map(printable, lines))


def say(message: str) -> None:
    """Print one line on standard error, from the first process only."""
    import jax  # not before it is needed: `--help` answers without it

    if jax.process_index() == 0:
        note(message)


def put(text: str) -> None:
    """Print on standard output; StorageError where that cannot be written.

    Whoever closes it, as `head` does, wants no more of it: that is no error, and all goes on.
    """
    try:
        print(text, flush=True)
    except BrokenPipeError:
        pass
    except OSError as error:
        raise StorageError(f"standard output cannot be written: {error.strerror}") from None


def drop_unwritten() -> None:
    """Drop what the standard streams have not taken: Python would end with 120 because of it."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def show(*parts: object) -> None:
    """Print tables and lines on standard output; no text in them is markup."""
    from rich.console import Console

    # Rich would end the process where standard output is closed.
    terminal = sys.stdout.isatty() or None
    console = Console(
        file=io.StringIO(),
        force_terminal=terminal,
        width=None if terminal else 120,
        markup=False,
        emoji=False,
    )
    for part in parts:
        text = isinstance(part, str)
        console.print(part, highlight=not text, soft_wrap=text)
    put(console.file.getvalue().removesuffix("\n"))
