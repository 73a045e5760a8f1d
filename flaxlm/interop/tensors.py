"""The tensors of a Hugging Face directory: safetensors only, and nothing in a file is believed.

A header is checked as a whole before anything is allocated for its tensors: it has at most
`HEADER_LIMIT` bytes, a tensor at most those of its file. The format's own library is not used to
read: it maps the file, so that what has been read stays resident beside the parameters made of it.
"""

import contextlib
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

from flaxlm.errors import DataError, MissingInput, Unsafe, raise_scarce
from flaxlm.untrusted import parse_json

WHOLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
PICKLE_INDEX = "pytorch_model.bin.index.json"
HEADER_LIMIT = 100_000_000  # that of the official library
MOST_DIMS = 64  # numpy's
MOST_BYTES = 2**63 - 1
# In the order in which the official library lays tensors out, so that all of them are aligned.
_CODES = ("I64", "F64", "F32", "I32", "BF16", "F16", "I16", "I8", "U8", "BOOL")
_KINDS = ("<i8", "<f8", "<f4", "<i4", ml_dtypes.bfloat16, "<f2", "<i2", "i1", "u1", "?")
DTYPES = dict(zip(_CODES, map(np.dtype, _KINDS), strict=True))
KEYS = ("dtype", "shape", "data_offsets")
# What files hold is quoted through it: escaped, so one line, and of bounded length.
_QUOTE = reprlib.Repr()
_QUOTE.maxstring = _QUOTE.maxother = 120
_quoted = _QUOTE.repr


class Info(NamedTuple):
    """Where a tensor lies: in bytes `begin` to `end` (exclusive) of a file, little-endian."""

    file: pathlib.Path
    dtype: np.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


def _need(condition: bool, message: str) -> None:
    if not condition:
        raise DataError(message)


class Tensors:
    """The tensors of a directory, each read when it is asked for; `infos` says where each lies."""

    def __init__(self, directory: pathlib.Path):
        """Check the headers of `model.safetensors`, or of what the index names, or of the one file.

        Raises:
          MissingInput: there are no tensors, or not all of them, or they cannot be read.
          DataError: a file is damaged, or is not what the index says.
          Unsafe: there are only pickles, or a name or a link leads out of the directory.
        """
        try:
            names = sorted(os.listdir(directory))
        except OSError as error:
            raise_scarce(error)
            raise MissingInput(f"cannot read {directory}: {error.strerror or error}") from None
        if WHOLE not in names and INDEX in names:
            self.infos, self._stamps = _indexed(directory)
            return
        path = _checked(directory, _only(directory, names))
        self.infos, stamp = _read_header(path)
        self._stamps = {path: stamp}

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(info.end - info.begin for info in self.infos.values())

    def read(self, name: str, out: np.ndarray | None = None) -> np.ndarray:
        """Return a tensor, read into `out`, contiguous and of its shape and dtype, or a new array.

        Raises:
          DataError: the file is not as it was when its header was checked, or a BOOL is not 0 or 1.
          MissingInput: the file cannot be read any more.
        """
        info = self.infos[name]
        with _opened(info.file) as (file, status):
            same = _stamp(status) == self._stamps[info.file]
            _need(same, f"{info.file} was changed after it was opened; start again")
            array = np.empty(info.shape, info.dtype) if out is None else out
            raw = array.reshape(-1).view(np.uint8)
            file.seek(info.begin)
            whole = _fill(file, raw) == raw.size
            _need(whole, f"{info.file} is cut off within tensor {_quoted(name)}")
        # numpy takes for granted that a bool is 0 or 1 and computes nonsense with any other.
        if info.dtype == np.bool_ and raw.size and raw.max() > 1:
            raise DataError(f"{info.file}: tensor {_quoted(name)} is BOOL and holds {raw.max()}")
        return array


def _only(directory: pathlib.Path, names: list[str]) -> str:
    """Return the name of the one file that holds all tensors of a directory without index."""
    if WHOLE in names:
        return WHOLE
    files = [n for n in names if n.endswith(".safetensors") and not n.startswith(".")]
    shard = files and re.search(r"-of-(\d+)\.safetensors$", files[0])
    if len(files) > 1 or (shard and int(shard[1]) > 1):
        raise MissingInput(
            f"{directory} has {_quoted(files[0])} and no {INDEX}, which says what belongs together"
        )
    if files:
        return files[0]
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
        size = status.st_size
        _need(size <= HEADER_LIMIT, f"{index} has {size:,} bytes; at most {HEADER_LIMIT:,} may be")
        raw = bytearray(size)
        _fill(file, raw)
    places = _parsed(raw, index, "file").get("weight_map")
    _need(isinstance(places, dict), f"{index} has no object weight_map")
    contents: dict[str, set[str]] = {}
    for name, file in places.items():
        contents.setdefault(_file_name(index, name, file), set()).add(name)
    paths = {file: _checked(directory, file, f", which {INDEX} names") for file in contents}
    infos, stamps = {}, {}
    for file, path in paths.items():
        here, stamps[path] = _read_header(path)
        for name in sorted(contents[file] - here.keys()):
            raise DataError(f"{path} lacks tensor {_quoted(name)}, which {INDEX} names")
        for name in sorted(here.keys() - contents[file]):
            raise DataError(
                f"{path} holds tensor {_quoted(name)}, which {INDEX} does not name there"
            )
        infos |= here
    return infos, stamps


def _file_name(index: pathlib.Path, name: str, file: Any) -> str:
    """Return the file that an index names for a tensor, if it can only be in the directory."""
    where = f"{index}: tensor {_quoted(name)} is said to be in {_quoted(file)}"
    _need(isinstance(file, str) and bool(file), f"{where}, which is no file name")
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
        _need(stat.S_ISREG(path.stat().st_mode), f"{path} is no regular file")
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
        raise_scarce(error)
        cause = getattr(error, "strerror", None) or error
        raise MissingInput(f"cannot read {path}{why}: {cause}") from None
    return path


@contextlib.contextmanager
def _opened(path: pathlib.Path) -> Iterator[tuple[BinaryIO, os.stat_result]]:
    """Open a regular file, unbuffered, and tell its status."""
    # A FIFO put there since the path was checked must not be waited for.
    no_wait = os.O_NONBLOCK
    try:
        with open(path, "rb", buffering=0, opener=lambda p, f: os.open(p, f | no_wait)) as file:
            status = os.fstat(file.fileno())
            _need(stat.S_ISREG(status.st_mode), f"{path} is no regular file")
            yield file, status
    except OSError as error:
        raise_scarce(error)
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
        _need(_fill(file, raw) == length, f"{path} is cut off within its header")
    return _infos(path, _parsed(raw, path, "header"), 8 + length, size), _stamp(status)


def _header_length(path: pathlib.Path, start: bytes, size: int) -> int:
    """Return the header's length, from the first 9 bytes of a file, if it can be one."""
    _need(size > 0, f"{path} is empty")
    if start[8:] != b"{":
        # Only now: a header may well have a length that looks like either magic number.
        if start.startswith((b"PK", b"\x80")):
            kind = "a zip archive, as torch.save writes it," if start[:1] == b"P" else "a pickle"
            raise _pickled(f"{path} is {kind} and no safetensors file")
        if start.startswith(b"version "):
            raise DataError(f"{path} is a pointer of Git LFS; get the file with: git lfs pull")
    _need(size >= 8, f"{path} is cut off: {size} bytes cannot be a safetensors file")
    length = int.from_bytes(start[:8], "little")
    _need(
        length <= HEADER_LIMIT,
        f"{path} is no safetensors file: its first 8 bytes claim a header of {length:,} bytes, "
        f"and at most {HEADER_LIMIT:,} may be",
    )
    claim = f"it claims a header of {length:,} bytes, and has {size:,} in all"
    _need(length <= size - 8, f"{path} is cut off: {claim}")
    json_object = start[8:] == b"{" and length >= 2
    _need(json_object, f"{path} is no safetensors file: its header is no JSON object")
    return length


def _parsed(raw: bytearray, path: pathlib.Path, what: str) -> dict[str, Any]:
    """Return a JSON object in which no key stands twice; DataError if it is anything else."""

    def constant(name: str):
        raise ValueError(f"{name} is no number")

    try:
        value = parse_json(raw, once=True, parse_constant=constant)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: byte {error.start} of the {what} is not UTF-8") from None
    except ValueError as error:
        raise DataError(f"{path}: the {what} is no JSON: {error}") from None
    _need(isinstance(value, dict), f"{path}: the {what} is no JSON object")
    return value


def _infos(path: pathlib.Path, header: dict[str, Any], start: int, size: int) -> dict[str, Info]:
    """Return where the tensors lie, if they cover the data of the file exactly."""
    metadata = header.pop("__metadata__", None)
    strings = isinstance(metadata, dict | None)
    strings = strings and all(isinstance(value, str) for value in (metadata or {}).values())
    _need(strings, f"{path}: __metadata__ is no object of strings")
    infos = {name: _info(path, name, entry, start, size) for name, entry in header.items()}
    position = start
    for name, info in sorted(infos.items(), key=lambda item: item[1][3:]):
        gap = info.begin - position
        _need(gap >= 0, f"{path}: tensor {_quoted(name)} overlaps the one before it")
        _need(gap == 0, f"{path}: {gap:,} bytes before tensor {_quoted(name)} belong to none")
        position = info.end
    left = size - position
    _need(left == 0, f"{path}: its last {left:,} bytes belong to no tensor")
    return infos


def _info(path: pathlib.Path, name: str, entry: Any, start: int, size: int) -> Info:
    """Return where one tensor lies, if its entry makes sense by itself."""
    here = f"{path}: tensor {_quoted(name)}"
    whole = isinstance(entry, dict) and set(entry) == set(KEYS)
    _need(whole, f"{here} is {_quoted(entry)}, not an object of {', '.join(KEYS)}")
    kind, shape, offsets = (entry[key] for key in KEYS)
    known = isinstance(kind, str) and kind in DTYPES
    _need(known, f"{here} has dtype {_quoted(kind)}; supported are: {', '.join(DTYPES)}")
    _need(
        _naturals(shape) and len(shape) <= MOST_DIMS,
        f"{here} has shape {_quoted(shape)}, not up to {MOST_DIMS} integers from 0",
    )
    _need(
        _naturals(offsets) and len(offsets) == 2 and offsets[0] <= offsets[1],
        f"{here} has data_offsets {_quoted(offsets)}, not begin and end",
    )
    begin, end = offsets
    dtype = DTYPES[kind]
    # numpy overlooks zeros here, so an empty array can be too big.
    _need(
        dtype.itemsize * math.prod(max(dim, 1) for dim in shape) <= MOST_BYTES,
        f"{here} has shape {_quoted(shape)}, which is too big for any memory",
    )
    _need(
        end <= size - start,
        f"{here} ends at byte {_quoted(end)} of the data, which has only {size - start:,}: "
        "the file is cut off",
    )
    nbytes = dtype.itemsize * math.prod(shape)
    _need(
        nbytes == end - begin,
        f"{here} of shape {_quoted(shape)} and dtype {kind} has {nbytes:,} bytes, and its "
        f"data_offsets [{begin}, {end}] hold {end - begin:,}",
    )
    return Info(path, dtype, tuple(shape), start + begin, start + end)


def _naturals(values: Any) -> bool:
    return isinstance(values, list) and all(type(v) is int and v >= 0 for v in values)
