"""Opening compressed files, and writing files so that no reader ever sees half of one."""

import contextlib
import gzip
import hashlib
import io
import os
import pathlib
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO

from flaxlm.errors import DataError, MissingInput


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[BinaryIO]:
    """Open a file aside; at the end flush it to disk and rename it, after an error remove it.

    A reader sees the old file or the new one.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(aside, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        with contextlib.suppress(OSError):
            aside.unlink()


def replace(path: pathlib.Path, contents: bytes) -> None:
    """Write a whole file; see `replacing`."""
    with replacing(path) as file:
        file.write(contents)


class _Counted(io.RawIOBase):
    """A file that reports the bytes read from it, so that compressed input has a progress bar."""

    def __init__(self, file: BinaryIO, progress: Callable[[int], None]):
        self._file, self._progress = file, progress

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        count = self._file.readinto(buffer)
        self._progress(count)
        return count


@contextlib.contextmanager
def opened(
    path: str | os.PathLike, progress: Callable[[int], None] | None = None
) -> Iterator[BinaryIO]:
    """Open for reading, decompressing `.gz` and `.zst`; a damaged archive is a DataError.

    `progress` is called with the number of (compressed) bytes just read.
    """
    name = str(path)
    try:
        with contextlib.ExitStack() as stack:
            file = stack.enter_context(open(path, "rb", buffering=0))
            raw = _Counted(file, progress) if progress else file
            if name.endswith(".gz"):
                yield stack.enter_context(gzip.GzipFile(fileobj=io.BufferedReader(raw, 1 << 20)))
            elif name.endswith(".zst"):
                buffered = io.BufferedReader(raw, 1 << 20)
                yield io.BufferedReader(_ZstdFile(buffered, name), 1 << 20)
            else:
                yield stack.enter_context(io.BufferedReader(raw, 1 << 20))
    except FileNotFoundError:
        raise MissingInput(f"{name} does not exist") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{name} is damaged or not gzip: {error}") from None
    except OSError as error:
        raise MissingInput(f"cannot read {name}: {error.strerror or error}") from None


class _ZstdFile(io.RawIOBase):
    """Decompress frame after frame; unlike zstandard's own reader it notices a cut-off file."""

    def __init__(self, file: BinaryIO, name: str):
        import zstandard

        self._new = zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj
        self._error = zstandard.ZstdError
        self._file, self._name = file, name
        self._frame, self._input, self._output = None, b"", b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        while not self._output:
            self._input = self._input or self._file.read(1 << 17)
            if not self._input:
                if self._frame is not None:
                    raise DataError(
                        f"{self._name} is cut off: the last zstandard frame is incomplete"
                    )
                return 0
            self._frame = self._frame or self._new()
            try:
                self._output = memoryview(self._frame.decompress(self._input))
            except self._error as error:
                raise DataError(f"{self._name} is damaged or not zstandard: {error}") from None
            self._input = self._frame.unused_data
            if self._frame.eof:
                self._frame = None
        count = min(len(buffer), len(self._output))
        buffer[:count] = self._output[:count]
        self._output = self._output[count:]
        return count


def lines(
    file: BinaryIO, name: str, most: int, keep_nul: bool = False
) -> Iterator[tuple[int, int, bytes]]:
    """Yield (line number from 1, byte offset, line with its end); DataError on a bad line.

    `most` bounds a line in bytes, so that a file without newlines cannot fill the memory.
    """
    number = offset = 0
    while line := file.readline(most + 1):
        number += 1
        if len(line) > most and not line.endswith(b"\n"):
            raise DataError(
                f"{name}, line {number} is longer than {most:,} bytes; break it up, or raise "
                "data.max_line_bytes"
            )
        nul = -1 if keep_nul else line.find(b"\0")
        if nul >= 0:
            raise DataError(
                f"{name}, byte {offset + nul} (line {number}) is NUL, so this is not "
                "text; remove it, or for plain text set data.strip_control=True"
            )
        yield number, offset, line
        offset += len(line)


def text_lines(path: str | os.PathLike, most: int) -> Iterator[tuple[int, str]]:
    """Yield (number from 1, text with its end) of each line; `.gz` and `.zst` are unpacked.

    The mark of an encoding before the first is left out; `most` bounds a line in bytes.
    """
    name = str(path)
    with opened(path) as file:
        for number, offset, line in lines(file, name, most):
            text = decoded(line, name, number, offset)
            yield number, text.removeprefix("\ufeff") if number == 1 else text


def decoded(line: bytes, name: str, number: int, offset: int) -> str:
    """Return the text of UTF-8 `line`; DataError with file and byte where it is not UTF-8."""
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise DataError(
            f"{name}, byte {offset + error.start} (line {number}) is not UTF-8: "
            f"{error.reason}; convert the file, for example with iconv"
        ) from None


def sha256(path: str | os.PathLike) -> str:
    """Return the sha-256 of a file's bytes, in hexadecimal."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise MissingInput(f"{path} does not exist") from None
    except OSError as error:
        raise MissingInput(f"cannot read {path}: {error.strerror or error}") from None


def fsync_directory(path: pathlib.Path) -> None:
    """Make the names in a directory durable."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def fsync_tree(path: pathlib.Path) -> None:
    """Make every file and every name under `path` durable, the deepest first."""
    for folder, _, names in os.walk(path, topdown=False):
        for name in names:
            handle = os.open(os.path.join(folder, name), os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
        fsync_directory(pathlib.Path(folder))


def write_durably(path: pathlib.Path, data: bytes) -> None:
    """Write a file so that after a crash it holds all of `data` or what it held before."""
    aside = path.with_name(f".{path.name}-{os.getpid()}")
    with open(aside, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.rename(aside, path)
    fsync_directory(path.parent)


def rename_durably(source: pathlib.Path, target: pathlib.Path) -> None:
    """Rename within one directory, durably."""
    os.rename(source, target)
    fsync_directory(target.parent)
