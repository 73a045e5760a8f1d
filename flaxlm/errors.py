"""The errors a user can meet, each with the exit code that launchers act on."""

import difflib
import errno
import math
import os
import resource
from collections.abc import Iterable
from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # of a disk, a quota, what a file may have
SCARCE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)  # of which no file is to blame
BLOCK = 4096  # bytes; what a file system gives, to a directory too


class FlaxlmError(Exception):
    """Base of every expected failure, whose message is printed as one `error:` line."""

    exit_code = 70


class ConfigError(FlaxlmError):
    """A flag or config key is wrong; nothing was started."""

    exit_code = 2


class DataError(FlaxlmError):
    """An input exists but cannot be used as it is."""

    exit_code = 65


class MissingInput(FlaxlmError):
    """An input that the config names is not there."""

    exit_code = 66


class Stuck(FlaxlmError):
    """A step or a peer did not answer in time."""

    exit_code = 71


class StorageError(FlaxlmError):
    """The disk is full or read-only, or no checkpoint can be read."""

    exit_code = 74


class NoRoom(OSError):
    """A write for which the disk has no room; its text says how much it lacks."""


class Preempted(FlaxlmError):
    """The run was asked to stop and has saved: start the same command again."""

    exit_code = 75


class Diverged(FlaxlmError):
    """The loss is not finite any more."""

    exit_code = 76


class Unsafe(FlaxlmError):
    """Going on would destroy or falsify a result, so it was refused."""

    exit_code = 77


class Interrupted(FlaxlmError):
    """The run was interrupted twice, and has not saved."""

    exit_code = 130


def raise_scarce(error: Exception) -> None:
    """Raise OSError where a reader lacked descriptors or memory, and the file is not to blame.

    Whoever says of a file that it is damaged or cannot be read calls this first. Libraries in C++
    have errors of their own, in whose text the system's stands.
    """
    for code in SCARCE:
        if getattr(error, "errno", None) == code or os.strerror(code) in str(error):
            raise OSError(code, os.strerror(code), getattr(error, "filename", None)) from None


def irregular(path: str | os.PathLike) -> Unsafe:
    """Return the error for a device, a pipe or whatever else is met where a file has to be."""
    return Unsafe(f"{path} is no regular file; remove it, or take another path")


def cause_of(error: OSError, path: str | os.PathLike, needed: int = 0) -> str:
    """Return why a write in `path` failed; of a full disk with the bytes needed and free.

    `needed` is what was to be written, as far as that is known; a block is at least. A disk is full
    too that has no inode for a new file.
    """
    if isinstance(error, NoRoom) or error.errno not in FULL:
        return error.strerror or str(error)
    place = next(at for at in (Path(path), *Path(path).absolute().parents) if at.exists())
    wanted, disk = max(needed, BLOCK), os.statvfs(place)
    lack = f"{size(wanted)} needed, {size(disk.f_bavail * disk.f_frsize)} free"
    longest, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    if error.errno == errno.EFBIG and longest != resource.RLIM_INFINITY:
        lack = f"{size(wanted)} needed; ulimit -f lets this process write files of {size(longest)}"
    elif error.errno == errno.ENOSPC and disk.f_files and not disk.f_favail:
        lack = f"no inode is free: the file system has its most files, {disk.f_files:,}"
    return f"{os.strerror(error.errno)} ({lack})"


def size(nbytes: int) -> str:
    """Return an amount of bytes for a person: `1.2 GB`, `3.4 MB`, `5,678 bytes`."""
    for unit, name in ((10**9, "GB"), (10**6, "MB")):
        if nbytes >= unit:
            return f"{nbytes / unit:.1f} {name}"
    return f"{nbytes:,} bytes"


def nearest(name: str, valid: Iterable[str]) -> str:
    """Return a ` (did you mean 'x'?)` hint, or nothing where no valid name is close."""
    close = difflib.get_close_matches(str(name), [str(v) for v in valid], n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def check_range(section: str, config, *names: str, low=0, high=math.inf) -> None:
    """Raise ConfigError for a field of a section's dataclass that is not in [low, high]."""
    for name in names:
        if not low <= getattr(config, name) <= high:
            bounds = f"at least {low}" if high == math.inf else f"in [{low}, {high}]"
            key = f"{section}.{name}".lstrip(".")
            raise ConfigError(f"{key}={getattr(config, name)} must be {bounds}")


def choose(what: str, given: str, valid: Iterable[str]) -> str:
    """Return `given` if it is one of `valid`; else raise ConfigError that names them."""
    valid = list(valid)
    if given in valid:
        return given
    hint = nearest(given, valid)
    choices = ", ".join(str(v) for v in valid)
    raise ConfigError(f"{what}={given!r} is not known{hint}; choose one of: {choices}")
