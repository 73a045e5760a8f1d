"""What several processes write in one place: locks, whole directories, and what the dead left."""

import contextlib
import fcntl
import os
import pathlib
import re
import shutil
import time
from collections.abc import Iterator

from flaxlm import files
from flaxlm.errors import Unsafe

_ASIDE = re.compile(r"\.(.+)\.[0-9a-f]{16}\.(tmp|old)")  # see `files.aside_of`
_LOOK = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
PATIENCE = 60.0  # seconds; nobody holds a lock for a hundredth of it who is not stopped


@contextlib.contextmanager
def locked(path: pathlib.Path, shared: bool = False) -> Iterator[None]:
    """Hold the lock `.NAME.lock` of a path that several processes replace, or read in parts.

    Whoever reads (`shared`) makes no lock: where there is none, nobody has replaced anything.
    Unsafe where another process holds it for a minute. The kernel frees it when its holder dies.
    """
    name, kind = path.with_name(f".{path.name}.lock"), fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    with contextlib.ExitStack() as ends:
        try:
            lock = os.open(name, _LOOK) if shared else files.handle(name, os.O_RDWR | os.O_CREAT)
            ends.callback(os.close, lock)
        except OSError:
            if not shared:
                raise
            lock = None
        until = time.monotonic() + PATIENCE
        while lock is not None:
            try:
                fcntl.flock(lock, kind | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    raise Unsafe(
                        f"{path} is in use: another process has held {name} for "
                        f"{PATIENCE:.0f} s; end it, or wait for it, and start again"
                    ) from None
                time.sleep(0.02)
        yield


@contextlib.contextmanager
def replacing_directory(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Make a directory aside; at the end it takes the place of the one at `path`.

    Whoever has the directory above `locked` sees the old one or the new. Where a kill leaves none,
    `sweep` puts the old one back.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside, old = files.aside_of(path), files.aside_of(path, "old")
    with contextlib.ExitStack() as ends:
        aside.mkdir()
        ends.callback(_remove, aside)
        while True:
            made = os.open(aside, _LOOK)
            ends.callback(os.close, made)
            if files.held(made):
                break
            aside.mkdir()
        yield aside
        files.fsync_tree(aside)
        with locked(path.parent):
            if os.path.lexists(path):
                files.rename(path, old)
            files.rename(aside, path)
            _remove(old)


def remove(path: pathlib.Path) -> None:
    """Remove a directory with all in it, or whatever else it is; of a link that alone."""
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _remove(path: pathlib.Path) -> None:
    """Remove as far as that can be done."""
    with contextlib.suppress(OSError):
        remove(path)


def sweep(folder: pathlib.Path) -> None:
    """Remove what dead processes left aside in a directory, and below; never a living one's."""
    for place, folders, names in os.walk(folder):
        for path in (pathlib.Path(place, name) for name in (*folders, *names)):
            match = _ASIDE.fullmatch(path.name)
            with contextlib.suppress(OSError, Unsafe), contextlib.ExitStack() as ends:
                if match and match[2] == "old":
                    target = path.with_name(match[1])
                    with locked(target.parent):
                        _remove(path) if os.path.lexists(target) else files.rename(path, target)
                elif match:
                    file = os.open(path, _LOOK)
                    ends.callback(os.close, file)
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    _remove(path)
