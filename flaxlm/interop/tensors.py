"""The tensors of a Hugging Face directory: safetensors only, and nothing in a file is believed.

A header is checked as a whole before anything is allocated for its tensors. Memory is bounded by
the size of the files that are really there: a header has at most `HEADER_LIMIT` bytes, a tensor at
most those of its file.

The format's own library is not used to read: it maps the file, so that what has been read stays
resident beside the parameters made of it.
"""

import contextlib
import json
import math
import os
import pathlib
import re
import reprlib
import stat
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

from flaxlm.errors import DataError, MissingInput, Unsafe

WHOLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
PICKLE_INDEX = "pytorch_model.bin.index.json"
HEADER_LIMIT = 100_000_000  # that of the official library
MOST_DIMS = 64  # numpy's
MOST_BYTES = 2**63 - 1
# In the order in which the official library lays tensors out, so that all of them are aligned.
DTYPES = {
    "I64": np.dtype("<i8"),
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "I32": np.dtype("<i4"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F16": np.dtype("<f2"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
KEYS = ("dtype", "shape", "data_offsets")

# What files hold is quoted through it: escaped, so one line, and of bounded length.
_QUOTE = reprlib.Repr()
_QUOTE.maxstring = _QUOTE.maxother = 120
_quoted = _QUOTE.repr


class Info(NamedTuple):
    """Where a tensor lies.

    Attributes:
      file: that holds it, not resolved.
      dtype: little-endian.
      shape: of the array.
      begin: offset of its first byte in the file.
      end: offset behind its last byte.
    """

    file: pathlib.Path
    dtype: np.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


class Tensors:
    """The tensors of a directory, each read when it is asked for.

    Attributes:
      infos: {name: where it lies}; every file of it has been checked.
    """

    def __init__(self, infos: dict[str, Info], stamps: dict[pathlib.Path, tuple[int, ...]]):
        self.infos = infos
        self._stamps = stamps

    @classmethod
    def open(cls, directory: pathlib.Path) -> "Tensors":
        """Find the files of a directory and check their headers; no tensor is read.

        Taken is `model.safetensors`, else what `model.safetensors.index.json` names, else the only
        `*.safetensors` file.

        Raises:
          MissingInput: there are no tensors, or not all of them, or they cannot be read.
          DataError: a file is damaged, or is not what the index says.
          Unsafe: there are only pickles, or a name or a link leads out of the directory.
        """
        directory = pathlib.Path(directory)
        try:
            names = sorted(os.listdir(directory))
        except OSError as error:
            raise MissingInput(f"cannot read {directory}: {error.strerror or error}") from None
        if WHOLE not in names and INDEX in names:
            return cls(*_indexed(directory))
        path = _checked(directory, _only(directory, names))
        infos, stamp = _read_header(path)
        return cls(infos, {path: stamp})

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(info.end - info.begin for info in self.infos.values())

    def read(self, name: str, out: np.ndarray | None = None) -> np.ndarray:
        """Return a tensor, read straight into `out` or an array of its own.

        Args:
          name: of the tensor.
          out: contiguous, of the tensor's shape and dtype.

        Raises:
          KeyError: `infos` has no such name.
          DataError: the file is not as it was when its header was checked, or a BOOL is not 0 or 1.
          MissingInput: the file cannot be read any more.
        """
        info = self.infos[name]
        with _opened(info.file) as (file, status):
            if _stamp(status) != self._stamps[info.file]:
                raise DataError(f"{info.file} was changed after it was opened; start again")
            array = np.empty(info.shape, info.dtype) if out is None else out
            raw = array.reshape(-1).view(np.uint8)
            file.seek(info.begin)
            if _fill(file, raw) < raw.size:
                raise DataError(f"{info.file} is cut off within tensor {_quoted(name)}")
        # numpy takes for granted that a bool is 0 or 1 and computes nonsense with any other.
        if info.dtype == np.bool_ and raw.size and raw.max() > 1:
            raise DataError(f"{info.file}: tensor {_quoted(name)} is BOOL and holds {raw.max()}")
        return array


def _only(directory: pathlib.Path, names: list[str]) -> str:
    """Return the name of the one file that holds all tensors of a directory without index."""
    if WHOLE in names:
        return WHOLE
    found = [n for n in names if n.endswith(".safetensors") and not n.startswith(".")]
    shard = found and re.search(r"-of-(\d+)\.safetensors$", found[0])
    if len(found) > 1 or (shard and int(shard[1]) > 1):
        raise MissingInput(
            f"{directory} has {_quoted(found[0])} and no {INDEX}, which says what belongs together"
        )
    if found:
        return found[0]
    pickles = [n for n in names if n.endswith(PICKLES) or n == PICKLE_INDEX]
    if pickles:
        raise _pickled(f"{directory} has no safetensors, only {_quoted(pickles[0])}")
    raise MissingInput(
        f"{directory} has no tensors: looked for {WHOLE}, {INDEX} and a single *.safetensors file"
    )


def _pickled(what: str) -> Unsafe:
    return Unsafe(
        f"{what}: pickles are not loaded, for loading one can execute code; convert them in an "
        "environment that may be harmed: load with transformers, then "
        "save_pretrained(..., safe_serialization=True)"
    )


def _indexed(directory: pathlib.Path):
    """Return the infos and stamps of all files that the index names, if they hold what it says."""
    index = _checked(directory, INDEX)
    with _opened(index) as (file, status):
        if status.st_size > HEADER_LIMIT:
            raise DataError(
                f"{index} has {status.st_size:,} bytes; at most {HEADER_LIMIT:,} may be"
            )
        raw = bytearray(status.st_size)
        _fill(file, raw)
    places = _parsed(raw, index, "file").get("weight_map")
    if not isinstance(places, dict):
        raise DataError(f"{index} has no object weight_map")
    contents: dict[str, set[str]] = {}
    for name, file in places.items():
        contents.setdefault(_file_name(index, name, file), set()).add(name)
    paths = {file: _checked(directory, file, f", which {INDEX} names") for file in contents}
    infos, stamps = {}, {}
    for file, named in contents.items():
        found, stamps[paths[file]] = _read_header(paths[file])
        lacking, more = sorted(named - found.keys()), sorted(found.keys() - named)
        if lacking:
            raise DataError(
                f"{paths[file]} lacks tensor {_quoted(lacking[0])}, which {INDEX} names"
            )
        if more:
            raise DataError(
                f"{paths[file]} holds tensor {_quoted(more[0])}, which {INDEX} does not name there"
            )
        infos |= found
    return infos, stamps


def _file_name(index: pathlib.Path, name: str, file: Any) -> str:
    """Return the file that an index names for a tensor, if it can only be in the directory."""
    where = f"{index}: tensor {_quoted(name)} is said to be in {_quoted(file)}"
    if not isinstance(file, str) or not file:
        raise DataError(f"{where}, which is no file name")
    if ".." in file or set(file) & set("/\\:") or not file.isprintable():
        raise Unsafe(f"{where}; only plain names of files beside the index are followed")
    if file.endswith(PICKLES):
        raise _pickled(where)
    return file


def _checked(directory: pathlib.Path, name: str, why: str = "") -> pathlib.Path:
    """Return the path of a regular file that is in the directory, links followed."""
    path = directory / name
    try:
        root, target = directory.resolve(), path.resolve()
        # The hub's cache: snapshots/REVISION/NAME links to ../../blobs/HASH.
        cache = root.parent.parent
        if root.parent.name == "snapshots" and cache.name.startswith("models--"):
            root = cache
        if not target.is_relative_to(root):
            raise Unsafe(
                f"{path} is a link to {target}, outside {root}; copy the file to its place"
            )
        if not stat.S_ISREG(path.stat().st_mode):
            raise DataError(f"{path} is no regular file")
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
        cause = getattr(error, "strerror", None) or error
        raise MissingInput(f"cannot read {path}{why}: {cause}") from None
    return path


@contextlib.contextmanager
def _opened(path: pathlib.Path) -> Iterator[tuple[BinaryIO, os.stat_result]]:
    """Open a regular file, unbuffered, and tell its status."""

    def opener(name, flags):
        # A FIFO put there since the path was checked must not be waited for.
        return os.open(name, flags | os.O_NONBLOCK)

    try:
        with open(path, "rb", buffering=0, opener=opener) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise DataError(f"{path} is no regular file")
            yield file, status
    except OSError as error:
        raise MissingInput(f"cannot read {path}: {error.strerror or error}") from None


def _stamp(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _fill(file: BinaryIO, buffer) -> int:
    """Read until a buffer is full or the file ends; return the number of bytes."""
    view, count = memoryview(buffer), 0
    while count < len(view) and (n := file.readinto(view[count:])):
        count += n
    return count


def _read_header(path: pathlib.Path) -> tuple[dict[str, Info], tuple[int, ...]]:
    """Return what a file holds, checked as a whole, and the stamp of the file."""
    with _opened(path) as (file, status):
        size = status.st_size
        start = bytearray(min(size, 9))
        _fill(file, start)
        length = _header_length(path, bytes(start), size)
        raw = bytearray(length)
        file.seek(8)
        if _fill(file, raw) < length:
            raise DataError(f"{path} is cut off within its header")
    return _infos(path, _parsed(raw, path, "header"), 8 + length, size), _stamp(status)


def _header_length(path: pathlib.Path, start: bytes, size: int) -> int:
    """Return the header's length, from the first 9 bytes of a file, if it can be one."""
    if not size:
        raise DataError(f"{path} is empty")
    if start[8:] != b"{":
        # Only now: a header may well have a length that looks like either magic number.
        if start.startswith((b"PK", b"\x80")):
            kind = "a zip archive, as torch.save writes it," if start[:1] == b"P" else "a pickle"
            raise _pickled(f"{path} is {kind} and no safetensors file")
        if start.startswith(b"version "):
            raise DataError(f"{path} is a pointer of Git LFS; get the file with: git lfs pull")
    if size < 8:
        raise DataError(f"{path} is cut off: {size} bytes cannot be a safetensors file")
    length = int.from_bytes(start[:8], "little")
    if length > HEADER_LIMIT:
        raise DataError(
            f"{path} is no safetensors file: its first 8 bytes claim a header of {length:,} bytes, "
            f"and at most {HEADER_LIMIT:,} may be"
        )
    if length > size - 8:
        raise DataError(
            f"{path} is cut off: it claims a header of {length:,} bytes, and has {size:,} in all"
        )
    if start[8:] != b"{" or length < 2:
        raise DataError(f"{path} is no safetensors file: its header is no JSON object")
    return length


def _parsed(raw: bytearray, path: pathlib.Path, what: str) -> dict[str, Any]:
    """Return a JSON object in which no key stands twice; DataError if it is anything else."""

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in items:
            if key in found:
                raise DataError(f"{path}: key {_quoted(key)} stands twice in the {what}")
            found[key] = value
        return found

    def constant(name: str):
        raise ValueError(f"{name} is no number")

    try:
        found = json.loads(raw.decode(), object_pairs_hook=pairs, parse_constant=constant)
        if b"\\u" in raw:  # an escape can write half a surrogate pair, which nothing can print
            json.dumps(found, ensure_ascii=False).encode()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: byte {error.start} of the {what} is not UTF-8") from None
    except RecursionError:
        raise DataError(f"{path}: the {what} is nested too deeply") from None
    except ValueError as error:
        raise DataError(f"{path}: the {what} is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise DataError(f"{path}: the {what} is no JSON object")
    return found


def _infos(path: pathlib.Path, header: dict[str, Any], start: int, size: int) -> dict[str, Info]:
    """Return where the tensors lie, if they cover the data of the file exactly."""
    metadata = header.pop("__metadata__", None)
    if metadata is not None and not (
        isinstance(metadata, dict) and all(isinstance(value, str) for value in metadata.values())
    ):
        raise DataError(f"{path}: __metadata__ is no object of strings")
    infos = {name: _info(path, name, entry, start, size) for name, entry in header.items()}
    position = start
    for name, info in sorted(infos.items(), key=lambda item: item[1][3:]):
        if info.begin < position:
            raise DataError(f"{path}: tensor {_quoted(name)} overlaps the one before it")
        if info.begin > position:
            gap = info.begin - position
            raise DataError(f"{path}: {gap:,} bytes before tensor {_quoted(name)} belong to none")
        position = info.end
    if position < size:
        raise DataError(f"{path}: its last {size - position:,} bytes belong to no tensor")
    return infos


def _info(path: pathlib.Path, name: str, entry: Any, start: int, size: int) -> Info:
    """Return where one tensor lies, if its entry makes sense by itself."""
    here = f"{path}: tensor {_quoted(name)}"
    if not isinstance(entry, dict) or set(entry) != set(KEYS):
        raise DataError(f"{here} is {_quoted(entry)}, not an object of {', '.join(KEYS)}")
    kind, shape, offsets = (entry[key] for key in KEYS)
    if not isinstance(kind, str) or kind not in DTYPES:
        raise DataError(f"{here} has dtype {_quoted(kind)}; supported are: {', '.join(DTYPES)}")
    if not _naturals(shape) or len(shape) > MOST_DIMS:
        raise DataError(f"{here} has shape {_quoted(shape)}, not up to {MOST_DIMS} integers from 0")
    if not _naturals(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise DataError(f"{here} has data_offsets {_quoted(offsets)}, not begin and end")
    begin, end = offsets
    dtype = DTYPES[kind]
    # numpy overlooks zeros here, so an empty array can be too big.
    if dtype.itemsize * math.prod(max(dim, 1) for dim in shape) > MOST_BYTES:
        raise DataError(f"{here} has shape {_quoted(shape)}, which is too big for any memory")
    if end > size - start:
        raise DataError(
            f"{here} ends at byte {_quoted(end)} of the data, which has only {size - start:,}: "
            "the file is cut off"
        )
    nbytes = dtype.itemsize * math.prod(shape)
    if nbytes != end - begin:
        raise DataError(
            f"{here} of shape {_quoted(shape)} and dtype {kind} has {nbytes:,} bytes, and its "
            f"data_offsets [{begin}, {end}] hold {end - begin:,}"
        )
    return Info(path, dtype, tuple(shape), start + begin, start + end)


def _naturals(values: Any) -> bool:
    return isinstance(values, list) and all(type(v) is int and v >= 0 for v in values)
