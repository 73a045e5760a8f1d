"""One run's directory on a local disk: its lock, its free space, and writes that survive a crash.

Nothing here imports jax: the lock is taken before anything slow starts.
"""

import contextlib
import errno
import fcntl
import os
import re
import shutil
import socket
from pathlib import Path

from flaxlm import files, locks
from flaxlm.errors import StorageError, Unsafe, cause_of, size

# Asked of the file system for real before training starts: a quota does not show in the free
# space that it reports. More than this would be slow where allocation writes zeros.
PROBE_BYTES = 64 << 20
PROBE = ".probe"


class Workdir:
    """A run directory, made if it is not there, and held by one process at a time.

    The lock is an `flock`, so the kernel frees it however its holder dies. Use as a context
    manager, or call `close`. In a run of several processes only the first one takes the `lock`.

    Raises:
      Unsafe: another process holds the directory; the message names it.
      StorageError: the directory cannot be made or written.
    """

    def __init__(self, path: str | os.PathLike, lock: bool = True):
        self.path = Path(path).expanduser().absolute()
        self._file: int | None = None
        check_path(self.path)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if lock:
                self._lock()
                locks.sweep(self.path)
        except OSError as error:
            raise unwritable(self.path, error) from error

    def _lock(self) -> None:
        path = self.path / "lock"
        file = files.handle(path, os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(file, 200, 0).decode(errors="replace").strip()
            os.close(file)
            raise Unsafe(
                f"{self.path} is in use by another run ({holder or 'process unknown'}); wait for "
                "it to end, stop it, or choose another run directory"
            ) from error
        os.ftruncate(file, 0)
        os.pwrite(file, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        self._file = file
        # A forked child (a data worker) holds the same lock and may outlive this process.
        os.register_at_fork(after_in_child=self.close)

    def close(self) -> None:
        """Free the lock."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                os.close(self._file)
            self._file = None

    def __enter__(self) -> "Workdir":
        return self

    def __exit__(self, *exception) -> None:
        self.close()


def check_path(path: Path) -> None:
    """Refuse a run directory of whose path the array store makes another, or none."""
    if re.search(r"(^|/)[a-z][a-z0-9]+:/", str(path)):
        raise StorageError(
            f"{path} names a bucket or a URL, and a run directory lies on a disk; mount the bucket "
            "and name the place, or choose another run directory"
        )
    if found := re.search(r"[\[\\\ud800-\udfff]", str(path)):
        pattern = found[0] in "[\\"
        what = repr(found[0]) if pattern else "a byte that is no UTF-8"
        why = "takes it for a pattern, and loses what it wrote" if pattern else "takes UTF-8 alone"
        raise StorageError(
            f"{path}: checkpoints cannot be written where a path has {what} (the array store "
            f"{why}); rename it, or choose another run directory"
        )


def unwritable(path: Path, error: OSError, needed: int = 0) -> StorageError:
    """Return the error for a directory in which `needed` bytes cannot be written."""
    cause = cause_of(error, path, needed)
    if error.errno in (errno.EISDIR, errno.ENOTDIR, errno.EEXIST):
        return StorageError(
            f"cannot write in {path}: {error.filename or path} is in the way ({cause}); choose "
            "another workdir, or remove it"
        )
    freed = "raise the limit" if error.errno == errno.EFBIG else "free the disk"
    return StorageError(f"cannot write in {path}: {cause}; {freed} or choose another workdir")


def probe(path: str | os.PathLike, nbytes: int = 0) -> None:
    """Raise StorageError unless `nbytes` more bytes can be written in the directory `path`.

    The file system must report that much as free, and allocate the first `PROBE_BYTES` of it.
    """
    path = Path(path)
    # A whole fs block even for nbytes=0, so that a read-only directory shows.
    tried = max(4096, min(nbytes, PROBE_BYTES))
    target = files.aside_of(path / PROBE.removeprefix("."))  # readers of one run may all do so
    try:
        path.mkdir(parents=True, exist_ok=True)
        for left in path.glob(f"{PROBE}.*.tmp"):  # of whoever died; a living one needs no name
            left.unlink(missing_ok=True)
        require_space(path, nbytes)
        with files.create(target) as file:
            os.posix_fallocate(file.fileno(), 0, tried)
            file.write(b"\1" * 4096)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise unwritable(path, error, nbytes) from error
    finally:
        with contextlib.suppress(OSError):
            target.unlink()


def require_space(path: Path, nbytes: int) -> None:
    """Raise StorageError unless the file system of `path` reports `nbytes` as free."""
    free = shutil.disk_usage(path).free
    if free < nbytes:
        raise StorageError(
            f"{path} has {size(free)} free and checkpoints need {size(nbytes)}; free the disk, "
            "choose another workdir, or keep fewer checkpoints"
        )
