"""The death of a process at any change of the disk, in this process."""

import contextlib
import os
import pathlib
import threading

import pytest

CHANGES = ("replace", "rename", "unlink", "rmdir", "mkdir", "fsync", "write", "ftruncate")


class Killed(BaseException):
    """Stands for a signal that nobody can catch."""


@contextlib.contextmanager
def dying(root: pathlib.Path, at: int, error: int = 0):
    """Kill the process at its change `at` of the disk: from there on nothing changes any more.

    Yields the list of all changes. With an `error` number that one change fails instead.
    """
    seen, lock = [], threading.Lock()

    def wrapped(name, real):
        def change(*arguments, **options):
            with lock:
                seen.append((name, *arguments[:2]))
                number = len(seen)
            if error and number == at:
                raise OSError(error, os.strerror(error))
            if not error and at and number >= at:
                raise Killed
            return real(*arguments, **options)

        return change

    with pytest.MonkeyPatch.context() as patch:
        for name in CHANGES:
            patch.setattr(os, name, wrapped(name, getattr(os, name)))
        yield seen


def left_aside(root: pathlib.Path) -> list[str]:
    """Return what is neither a result nor a lock."""
    return [path.name for path in root.rglob(".*") if not path.name.endswith(".lock")]
