"""Tensors into a Hugging Face directory as safetensors, each made when it is written.

The format's own library wants all tensors of a file at once; here one exists at a time.
"""

import json
import math
import pathlib
from collections.abc import Callable, Iterable
from typing import Any, BinaryIO

import numpy as np

from flaxlm import files
from flaxlm.errors import StorageError, cause_of
from flaxlm.interop.tensors import DTYPES, HEADER_LIMIT, INDEX, KEYS, WHOLE

METADATA = {"format": "pt"}  # without it `transformers` refuses the file
ALIGNED = 8
NAMES = {dtype: name for name, dtype in DTYPES.items()}
Tensor = tuple[str, tuple[int, ...], np.dtype, Callable[[], np.ndarray]]


def save(
    directory: pathlib.Path, tensors: Iterable[Tensor], limit: int = 5 * 10**9
) -> list[pathlib.Path]:
    """Write tensors as a Hugging Face directory; return the files, an index last.

    Each file appears complete or not at all, and the index after all that it names. Files of an
    earlier save that had other names stay.

    Args:
      directory: made if it is not there.
      tensors: (name, shape, dtype, function that makes the array when it is written).
      limit: most bytes of tensors in a file; a larger tensor has a file of its own.

    Raises:
      StorageError: a file cannot be written.
      ValueError: a name or dtype cannot be stored, or an array is not what was announced.
    """
    shards = _shards(tensors, limit)
    nbytes = sum(_nbytes(tensor) for shard in shards for tensor in shard)
    paths = [directory / WHOLE]
    if len(shards) > 1:
        total = len(shards)
        paths = [directory / f"model-{n:05}-of-{total:05}.safetensors" for n in range(1, total + 1)]
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for path, shard in zip(paths, shards, strict=True):
            with files.replacing(path) as file:
                _write_shard(file, shard)
        if len(shards) > 1:
            places = {t[0]: path.name for path, s in zip(paths, shards, strict=True) for t in s}
            facts = {"metadata": {"total_size": nbytes}, "weight_map": dict(sorted(places.items()))}
            paths.append(directory / INDEX)
            files.replace(paths[-1], json.dumps(facts, indent=2, ensure_ascii=False) + "\n")
    except OSError as error:
        raise StorageError(
            f"cannot write in {directory}: {cause_of(error, directory, nbytes)}"
        ) from None
    return paths


def _nbytes(tensor: Tensor) -> int:
    return math.prod(tensor[1]) * tensor[2].itemsize


def _shards(tensors: Iterable[Tensor], limit: int) -> list[list[Tensor]]:
    """Return the tensors of each file, in the order given, checked as far as they are known."""
    shards: list[list[Tensor]] = [[]]
    names, filled = set(), 0
    for name, shape, dtype, make in tensors:
        dtype = np.dtype(dtype).newbyteorder("<")
        if dtype not in NAMES:
            raise ValueError(f"tensor {name!r}: {dtype} is none of {', '.join(DTYPES)}")
        if name in names or name == "__metadata__":
            raise ValueError(f"tensor {name!r}: the name is taken")
        names.add(name)
        tensor = name, tuple(map(int, shape)), dtype, make
        if shards[-1] and filled + _nbytes(tensor) > limit:
            shards.append([])
            filled = 0
        shards[-1].append(tensor)
        filled += _nbytes(tensor)
    return shards


def _write_shard(file: BinaryIO, shard: list[Tensor]) -> None:
    order = list(DTYPES)
    shard = sorted(shard, key=lambda t: (order.index(NAMES[t[2]]), t[0]))
    header: dict[str, Any] = {"__metadata__": METADATA}
    begin = 0
    for tensor in shard:
        name, shape, dtype, _ = tensor
        end = begin + _nbytes(tensor)
        header[name] = dict(zip(KEYS, (NAMES[dtype], shape, (begin, end)), strict=True))
        begin = end
    raw = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % ALIGNED)
    if len(raw) > HEADER_LIMIT:
        raise ValueError(f"the names of the tensors take {len(raw):,} bytes of header")
    file.write(len(raw).to_bytes(8, "little") + raw)
    for tensor in shard:
        file.write(_bytes(*tensor))  # held by no name: the next one is made after this is freed


def _bytes(name, shape, dtype, make) -> memoryview:
    """Make a tensor; return its bytes, a view where it lies as the format wants it."""
    array = np.asarray(make())
    if array.shape != shape or array.dtype.newbyteorder("<") != dtype:
        raise ValueError(
            f"tensor {name!r} is {array.dtype}{list(array.shape)}, announced as "
            f"{dtype}{list(shape)}"
        )
    array = np.asarray(array, dtype, order="C")
    return memoryview(array.reshape(-1).view(np.uint8))
