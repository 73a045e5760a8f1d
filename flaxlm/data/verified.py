"""That files are what was written: read whole once on each machine, and in samples from then on.

What was verified stands beside a cache in `.NAME.verified-MACHINE.json`: of each file its digest,
size, times, inode and a checksum of each block. It counts on the machine that wrote it, for a file
that nobody has touched since (the time of change cannot be set back): what was copied, restored or
written to is read whole again. Where it cannot be written every start reads everything.
"""

import contextlib
import functools
import hashlib
import json
import os
import pathlib
import random
import socket
import time
import zipfile
import zlib
from collections.abc import Callable, Mapping

from flaxlm import files
from flaxlm.errors import DataError, raise_scarce
from flaxlm.progress import Progress
from flaxlm.untrusted import file_bytes, parse_json

BLOCK = 4 << 20  # bytes that a checksum is of
SAMPLES = 8  # blocks that are read again where all was verified before
FORMAT = 1
TICK = 0.03  # seconds


@functools.cache
def machine() -> str:
    """Return 12 hexadecimal digits of this machine's name and id."""
    name = socket.gethostname()
    with contextlib.suppress(OSError):
        name += pathlib.Path("/etc/machine-id").read_text(encoding="utf-8")
    return hashlib.sha256(name.encode()).hexdigest()[:12]


class Verified:
    """What was verified of a token cache, and of the files that it was made of, on this machine."""

    def __init__(self, directory: pathlib.Path):
        self._path = directory.with_name(f".{directory.name}.verified-{machine()}.json")
        self._known: dict[str, dict] = {}
        self._changed = False
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            contents = parse_json(file_bytes(self._path), whole=False)
            if contents["format"] == FORMAT:
                self._known = dict(contents["files"])

    def save(self) -> None:
        """Write it down for the next start; that this cannot be done is no error."""
        if self._changed:
            with contextlib.suppress(OSError):
                text = json.dumps({"format": FORMAT, "files": self._known})
                files.replace(self._path, text + "\n")
            self._changed = False

    def blocks(self, path: str | os.PathLike, sha256: str) -> list[int] | None:
        """Return the checksums of a file's blocks; None unless it was verified as it is now."""
        known = self._known.get(os.path.abspath(path))
        try:
            good = known and known["sha256"] == sha256 and known["stat"] == _stat(path)
            return list(known["blocks"]) if good else None
        except (OSError, KeyError, TypeError):
            return None

    def read(
        self, path: str | os.PathLike, progress: Callable[[int], None] = lambda count: None
    ) -> str:
        """Return the sha-256 of a file, which is read whole for it and noted."""
        before, digest, blocks = _settled(path), hashlib.sha256(), []
        with open(path, "rb") as file:
            while data := file.read(BLOCK):
                digest.update(data)
                blocks.append(zlib.crc32(data))
                progress(len(data))
        noted = {"sha256": digest.hexdigest(), "stat": before, "blocks": blocks}
        self._known[os.path.abspath(path)] = noted
        self._changed = True
        return noted["sha256"]


def _stat(path: str | os.PathLike) -> list[int]:
    entry = os.stat(path)
    return [entry.st_size, entry.st_mtime_ns, entry.st_ctime_ns, entry.st_ino]


def _settled(path: str | os.PathLike) -> list[int]:
    """Return the `_stat` of a file, once the clock of the disk is past it.

    A change within one tick of it (10 ms at most) would leave the same times.
    """
    age = time.time() - os.stat(path).st_ctime
    time.sleep(TICK if 0 <= age < TICK else 0)
    return _stat(path)


def damaged(path: pathlib.Path, fault: str) -> DataError:
    """Return the error for a file of a token cache."""
    return DataError(f"{path} {fault}; delete {path.parent} and tokenize again")


def verify(directory: pathlib.Path, facts: Mapping[str, Mapping], whole: bool = False) -> None:
    """Raise DataError, naming it, where a file of a token cache is not what was written.

    Args:
      directory: of the cache.
      facts: {file: its `bytes` and `sha256`}.
      whole: read every file whole, and not a few blocks of those that were verified before.
    """
    known = Verified(directory)
    sums = {n: None if whole else known.blocks(directory / n, facts[n]["sha256"]) for n in facts}
    places = [(name, block) for name in facts for block in range(len(sums[name] or ()))]
    todo = {name: None for name in facts if sums[name] is None}
    try:
        for name, block in random.Random().sample(places, min(SAMPLES, len(places))):
            if not _same_block(directory / name, block, sums[name][block]):
                todo[name] = None
        total = sum(facts[name]["bytes"] for name in todo)
        with Progress(f"verifying {directory}", total, unit="MB", scale=1e6) as progress:
            for name in todo:
                if known.read(directory / name, progress.add) != facts[name]["sha256"]:
                    raise damaged(directory / name, "does not match its manifest")
    except OSError as error:
        raise_scarce(error)
        path = pathlib.Path(error.filename or directory / name)
        raise damaged(path, f"cannot be read ({error.strerror})") from None
    finally:
        known.save()


def _same_block(path: pathlib.Path, block: int, checksum: int) -> bool:
    with open(path, "rb") as file:
        file.seek(block * BLOCK)
        return zlib.crc32(file.read(BLOCK)) == checksum


def is_whole(path: pathlib.Path) -> bool:
    """Return whether a part of an interrupted build is there, with the checksums it was given."""
    try:
        with zipfile.ZipFile(path) as part:
            return part.testzip() is None
    except FileNotFoundError:
        return False
    except (zipfile.BadZipFile, zlib.error, OSError, ValueError, NotImplementedError) as error:
        raise_scarce(error)
        return False
