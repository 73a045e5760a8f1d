"""Reading files, compressed ones too, by lines; writing them so that none is ever seen half.

Text is UTF-8, and lines end at a line feed, or a carriage return and a line feed, nowhere else.
"""

import contextlib
import fcntl
import gzip
import hashlib
import io
import os
import pathlib
import secrets
import stat
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO

from flaxlm import encoding
from flaxlm.errors import (
    FULL,
    DataError,
    MissingInput,
    NoRoom,
    Unsafe,
    cause_of,
    irregular,
    raise_scarce,
)
from flaxlm.untrusted import check_replaceable, memory_of

MOST_LINE_BYTES = 64 << 20
# A frame's window, which zstd keeps in memory: twice the longest line, or the most that zstd's own
# tool takes unasked.
WINDOW = 128 << 20  # bytes
PIECE = 1 << 10  # bytes unpacked at a time: at most 32 MiB come of them
# What is held in memory of a packed file as a whole may be so many times its size, beyond so many
# bytes. Text is packed to a fifth, like rows to a twentieth, and becomes objects of 50 bytes more.
MOST_RATIO, FREE = 50, 128 << 20


def handle(path: str | os.PathLike, flags: int) -> int:
    """Open a regular file to write, making it where `flags` has O_CREAT; return its descriptor.

    Never through a link, which whoever made the directory may have laid to any file of the user's,
    nor a pipe, on which it would wait: Unsafe (OSError ENXIO of a pipe that nobody reads).
    """
    try:
        file = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError:
        if os.path.islink(path):
            raise Unsafe(
                f"{path} is a link to {os.readlink(path)}, and nothing is written through links; "
                "remove it"
            ) from None
        raise
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise irregular(path)
    return file


def create(path: str | os.PathLike) -> BinaryIO:
    """Open a new file to write; what stands there, a link as well, is removed, not written to."""
    pathlib.Path(path).unlink(missing_ok=True)
    return open(handle(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb")


def append(path: str | os.PathLike, contents: bytes | str) -> None:
    """Write at the end of a file, text as UTF-8: all, or nothing where that fails; see `handle`."""
    contents = contents.encode() if isinstance(contents, str) else contents
    file = handle(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        size, left = os.fstat(file).st_size, memoryview(contents)
        try:
            while left:
                left = left[os.write(file, left) :]
        except OSError:
            os.ftruncate(file, size)
            raise
    finally:
        os.close(file)


def aside_of(path: pathlib.Path, kind: str = "tmp") -> pathlib.Path:
    """Return a name beside `path` that no other process or thread has; see `locks.sweep`."""
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}.{kind}")


def held(file: int) -> bool:
    """Hold what is made aside, so that it is not swept while in use; False where it was before."""
    with contextlib.suppress(OSError):  # a file system without locks, where all is left
        fcntl.flock(file, fcntl.LOCK_EX)
    return os.fstat(file).st_nlink > 0


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[BinaryIO]:
    """Open a file aside; at the end flush it to disk and rename it, after an error remove it.

    A reader sees the old file or the new one, whole, and so after a crash does the disk. Several
    processes may do so at a time: the last one's stays. What is no file is not replaced.
    """
    check_replaceable(path)
    aside, size = aside_of(path), 0
    try:
        file = create(aside)
        while not held(file.fileno()):
            file.close()
            file = create(aside)
        with file:
            try:
                yield file
                file.flush()
                os.fsync(file.fileno())
                rename(aside, path)
            finally:
                size = file.tell()
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise NoRoom(error.errno, cause_of(error, path, size), str(path)) from None
    finally:
        with contextlib.suppress(OSError):
            aside.unlink()


def replace(path: pathlib.Path, contents: bytes | str) -> None:
    """Write a whole file, text as UTF-8; see `replacing`."""
    with replacing(path) as file:
        file.write(contents.encode() if isinstance(contents, str) else contents)


def rename(source: pathlib.Path, target: pathlib.Path) -> None:
    """Rename within one directory, durably."""
    os.replace(source, target)
    _fsync(target.parent)


def fsync_tree(path: pathlib.Path) -> None:
    """Make every file and every name under `path` durable, the deepest first."""
    for folder, _, names in os.walk(path, topdown=False):
        for name in names:
            _fsync(os.path.join(folder, name))
        _fsync(folder)


def _fsync(path: str | os.PathLike) -> None:
    """Make a file, or the names in a directory, durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class TooLong(DataError):
    """A file is longer than it may be where it is read as a whole."""


class _Stream(io.RawIOBase):
    """A file of the bytes that an iterator yields."""

    def __init__(self, chunks: Iterator[bytes]):
        self._chunks, self._left = chunks, memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        while not self._left:
            chunk = next(self._chunks, None)
            if chunk is None:
                return 0
            self._left = memoryview(chunk)
        count = min(len(buffer), len(self._left))
        buffer[:count], self._left = self._left[:count], self._left[count:]
        return count


def _chunks(file: BinaryIO, progress: Callable[[int], None] | None) -> Iterator[bytes]:
    """Yield the bytes of a file; they are counted before any decompression."""
    while data := file.read(1 << 17):
        if progress:
            progress(len(data))
        yield data


def _without_zstd(chunks: Iterator[bytes], name: str, window: int) -> Iterator[bytes]:
    """Decompress frame after frame; unlike zstandard's own reader this notices a cut-off file."""
    import zstandard

    decompressor, frame = zstandard.ZstdDecompressor(max_window_size=window), None
    for data in (chunk[at : at + PIECE] for chunk in chunks for at in range(0, len(chunk), PIECE)):
        while data:
            frame = frame or decompressor.decompressobj()
            try:
                yield frame.decompress(data)
            except zstandard.ZstdError as error:
                wide = "too much memory" in str(error)
                raise DataError(
                    f"{name} wants a window of more than {window:,} bytes; pack it again as "
                    "zstd does by itself, or raise data.max_line_bytes"
                    if wide
                    else f"{name} is damaged or not zstandard: {error}"
                ) from None
            data = frame.unused_data
            frame = None if frame.eof else frame
    if frame is not None:
        raise DataError(f"{name} is cut off: the last zstandard frame is incomplete")


@contextlib.contextmanager
def opened(
    path: str | os.PathLike, progress: Callable[[int], None] | None = None, most: int = 0
) -> Iterator[BinaryIO]:
    """Open for reading, decompressing `.gz` and `.zst`; a damaged archive is a DataError.

    `progress` is called with the number of (compressed) bytes just read; `most` are the bytes of
    a line.
    """
    name = str(path)
    try:
        with contextlib.ExitStack() as stack:
            chunks = _chunks(stack.enter_context(open(path, "rb", buffering=0)), progress)
            if name.endswith(".zst"):
                chunks = _without_zstd(chunks, name, max(WINDOW, 2 * most))
            file = stack.enter_context(io.BufferedReader(_Stream(chunks), 1 << 20))
            yield stack.enter_context(gzip.GzipFile(fileobj=file)) if name.endswith(".gz") else file
    except FileNotFoundError:
        raise MissingInput(f"{name} does not exist") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{name} is damaged or not gzip: {error}") from None
    except OSError as error:
        raise_scarce(error)
        raise MissingInput(f"cannot read {name}: {error.strerror or error}") from None


def text_lines(
    path: str | os.PathLike,
    most: int,
    progress: Callable[[int], None] | None = None,
    strip_control: bool | None = None,
    whole: bool = False,
    ends: bool = True,
) -> Iterator[tuple[int, str]]:
    """Yield (number from 1, text, with its end where `ends`) of each line; DataError on a bad line.

    The mark of an encoding before the first is left out. A carriage return within a line is a
    character like any other, but DataError where there are such alone, so that the file would be
    one line, unless it is read as a `whole` anyway. A line has at most `most` bytes, and its text
    takes at most twice that, so that a file without newlines cannot fill the memory; `most` is
    data.max_line_bytes, and 0, which stands for MOST_LINE_BYTES, where no config says so. NUL is
    let through where `strip_control`, which is data.strip_control, or None where that is not
    asked. `progress` is as in `opened`.
    """
    name, limit = str(path), most or MOST_LINE_BYTES
    with opened(path, progress, limit) as file:
        encoding.refuse_wide(file.peek(encoding.HEAD), name)
        number = offset = 0
        while line := file.readline(limit + 1):
            number += 1
            if len(line) > limit and not line.endswith(b"\n"):
                raise DataError(
                    f"{name}, line {number} is longer than {limit:,} bytes; break it up"
                    + ", or raise data.max_line_bytes" * bool(most)
                )
            nul = -1 if strip_control else line.find(b"\0")
            if nul >= 0:
                raise DataError(
                    f"{name}, byte {offset + nul} (line {number}) is NUL, so this is not text; "
                    "remove it" + ", or set data.strip_control=True" * (strip_control is False)
                )
            size, ended = len(line), line.endswith(b"\n")
            if not ends:
                line = line.removesuffix(b"\n").removesuffix(b"\r")
            if size > limit // 2:
                encoding.check_text(line, limit, f"{name}, line {number}", bool(most))
            text = encoding.decoded(line, name, number, offset)
            line = b""  # the text alone is held
            if number == 1:
                text = text.removeprefix(encoding.MARK)
                if not whole and not ended:
                    encoding.refuse_old_ends(text, name)
            yield number, text
            offset += size


def bare_lines(
    path: str | os.PathLike,
    most: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Iterator[tuple[int, str]]:
    """Yield (number from 1, text without its end) of each line; see `text_lines`."""
    return text_lines(path, most, progress, ends=False)


class Held:
    """What a reader holds in memory of a file, so that a small archive cannot fill it."""

    def __init__(self, path: str | os.PathLike):
        self.path, self.bytes = path, 0
        self.packed = str(path).endswith((".gz", ".zst", ".parquet")) and os.path.isfile(path)
        self.most = max(FREE, MOST_RATIO * os.path.getsize(path)) if self.packed else 1 << 62

    def add(self, value: object, besides: int = 0) -> None:
        """Count what is held, a line or the values of a row; DataError of too much."""
        if not self.packed:
            return
        self.bytes += memory_of(value) + besides
        if self.bytes > self.most:
            raise DataError(
                f"{self.path} unpacks to more than {MOST_RATIO} times its size, and all of it is "
                f"held in memory; if it is meant so, unpack it first, or write it as JSON lines"
            )


def read_text(path: str | os.PathLike, most: int) -> str:
    """Return the text of a whole file of at most `most` bytes; `.gz` and `.zst` are unpacked."""
    name = str(path)
    with opened(path, most=most) as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise TooLong(f"{name} is longer than {most:,} bytes; raise data.max_line_bytes")
    encoding.refuse_wide(data, name)
    encoding.check_text(data, most, name, known=True)
    return encoding.decoded(data, name, 1, 0).removeprefix(encoding.MARK)


def sha256(path: str | os.PathLike, most: int | None = None) -> str:
    """Return the sha-256 of a file's bytes, or of its first `most`, in hexadecimal."""
    try:
        with open(path, "rb") as file:
            if most is None:
                return hashlib.file_digest(file, "sha256").hexdigest()
            digest = hashlib.sha256()
            while data := file.read(min(most, 1 << 20)):
                digest.update(data)
                most -= len(data)
            return digest.hexdigest()
    except FileNotFoundError:
        raise MissingInput(f"{path} does not exist") from None
    except OSError as error:
        raise_scarce(error)
        raise MissingInput(f"cannot read {path}: {error.strerror or error}") from None
