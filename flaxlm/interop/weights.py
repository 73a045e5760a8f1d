"""Parameters of ours and tensors of a Hugging Face directory, each found by the other's name."""

import math
import pathlib
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flaxlm.errors import ConfigError, DataError
from flaxlm.interop.config import Description
from flaxlm.interop.spec import Row
from flaxlm.interop.tensors import Info, Tensors

ALIASES = (
    (r"(LayerNorm|layer_norm)\.gamma$", r"\1.weight"),
    (r"(LayerNorm|layer_norm)\.beta$", r"\1.bias"),
)
OUTPUTS = ("heads/lm/kernel", "heads/mlm/kernel")


class Part(NamedTuple):
    """One tensor that a parameter is made of, or a part of one.

    Attributes:
      name: of the tensor.
      row: how it lies there.
      leaf: last part of our path.
      shape: of ours, one layer of it where it is stacked, without padding of the vocabulary.
      layer: index into our leading dimension; None where it is not stacked.
    """

    name: str
    row: Row
    leaf: str
    shape: tuple[int, ...]
    layer: int | None

    @property
    def stored(self) -> tuple[int, ...]:
        """Shape of the tensor."""
        return self.row.layout.shape(self.leaf, self.shape)

    def view(self, tensor: np.ndarray) -> np.ndarray:
        """Return a view of the tensor in our shape."""
        return self.row.layout.view(tensor, self.leaf, self.shape)


def rows_of(description: Description, prefix: str, config) -> dict[str, Row]:
    """Return {path of ours: Row} of a class, with the prefix of its backbone written out."""
    rows = [*description.family.rows(config), *description.head.rows]
    return {row.path: row._replace(name=row.name.replace("~", prefix)) for row in rows}


def prefix_of(description: Description) -> str:
    """Return the prefix of the backbone's tensors in a class."""
    family, head = description.family, description.head
    end = description.architecture.removeprefix(family.model_types[description.model_type])
    bare = end not in family.prefixed if family.prefixed else end == next(iter(family.classes))
    return "" if bare else f"{head.prefix or family.prefix}."


def parts(path: str, shape: tuple[int, ...], rows: dict[str, Row]) -> list[Part]:
    """Return what a parameter is made of; empty where the rows do not know it."""
    parent, _, leaf = path.rpartition("/")
    row = rows.get(path) or rows.get(parent)
    if row is None:
        return []
    name = row.name
    if row.path == parent:
        name += ".bias" if leaf == "bias" else ".weight"
    if "{n}" not in name:
        return [Part(name, row, leaf, shape, None)]
    return [
        Part(name.replace("{n}", str(row.start + n)), row, leaf, shape[1:], n)
        for n in range(shape[0])
    ]


class Weights:
    """The parameters that a directory offers, by our paths.

    Attributes:
      description: of its `config.json`; `tied` is decided by the tensors, as the library that
        writes them does: two different tables are two tables, whatever the config says.
      prefix: of the backbone's tensors in these files.
    """

    def __init__(self, directory: pathlib.Path, description: Description):
        self.directory = directory
        self._tensors = Tensors.open(directory)
        aliases = ALIASES + description.family.aliases
        self._names: dict[str, str] = {}
        for name in self._tensors.infos:
            known = name
            for pattern, replacement in aliases:
                known = re.sub(pattern, replacement, known)
            if known in self._names:
                raise DataError(f"{directory}: {name} and {self._names[known]} are both {known}")
            self._names[known] = name
        self.prefix = self._prefix(description)
        self.description = self._untie(description)
        self.config = self.description.config()
        self._rows = rows_of(self.description, self.prefix, self.config)
        self._check_zeros()

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return self._tensors.nbytes

    @property
    def dtype(self) -> np.dtype:
        """The dtype of most of the parameters."""
        sizes: dict[np.dtype, int] = {}
        for info in self._tensors.infos.values():
            sizes[info.dtype] = sizes.get(info.dtype, 0) + info.end - info.begin
        return max(sizes, key=lambda dtype: sizes[dtype])

    def _info(self, name: str) -> Info:
        return self._tensors.infos[self._names[name]]

    def _prefix(self, description: Description) -> str:
        """Return the prefix that the table of tokens is found with: files may lack or have it."""
        rows = rows_of(description, "~", description.config())
        token = rows["embed/token"].name
        expected = prefix_of(description)
        for prefix in (expected, "", f"{description.family.prefix}."):
            if token.replace("~", prefix) in self._names:
                return prefix
        raise DataError(
            f"{self.directory} has no tensor {token.replace('~', expected)}, which "
            f"{description.architecture} reads; its tensors are of another architecture"
        )

    def _untie(self, description: Description) -> Description:
        import dataclasses

        rows = rows_of(description, self.prefix, description.config())
        outputs = [row for path in OUTPUTS if (row := rows.get(path) or rows.get(path[:-7]))]
        tied = description.fields.get("tied", True)
        for row in outputs:
            name = row.name if row.name.endswith(".weight") else f"{row.name}.weight"
            if tied and name in self._names:
                token = rows["embed/token"].name
                same = self._info(name)[1:3] == self._info(token)[1:3] and np.array_equal(
                    self._read(name), self._read(token)
                )
                tied = same
        fields = description.fields | {"tied": tied}
        return dataclasses.replace(description, fields=fields)

    def _check_zeros(self) -> None:
        for name in self.description.head.zeros:
            if name in self._names and np.any(self._read(name)):
                raise ConfigError(f"{self.directory}: {name} is not 0, which is not supported")

    def _read(self, name: str, out: np.ndarray | None = None) -> np.ndarray:
        return self._tensors.read(self._names[name], out)

    def offers(self, shapes: dict[str, tuple[int, ...]]) -> list[str]:
        """Return the paths among `shapes` whose tensors are all there."""
        return [path for path, shape in shapes.items() if self._complete(path, shape)]

    def _complete(self, path: str, shape: tuple[int, ...]) -> bool:
        found = parts(path, shape, self._rows)
        missing = [part.name for part in found if part.name not in self._names]
        if missing and len(missing) < len(found):
            raise DataError(f"{self.directory} lacks {_some(missing)}")
        return bool(found) and not missing

    def fits(self, path: str, shape: tuple[int, ...]) -> bool:
        """Return whether a parameter's tensors, which are there, have the right shapes."""
        found = parts(path, shape, self._rows)
        return all(self._info(part.name).shape == part.stored for part in found)

    def check(self, shapes: dict[str, tuple[int, ...]]) -> list[str]:
        """Refuse tensors that are not understood or have other shapes; return those not read.

        Args:
          shapes: real shapes of the parameters that will be loaded.

        Raises:
          DataError: tensors of other shapes, or that no row of the class knows.
        """
        used, wrong = set(), []
        for path, shape in shapes.items():
            for part in parts(path, shape, self._rows):
                used.add(part.name)
                info = self._info(part.name)
                if info.shape != part.stored:
                    stored = f"{list(info.shape)}, not {list(part.stored)}"
                    wrong.append(f"{part.name} (our {path}) has shape {stored}")
                elif not jnp.issubdtype(info.dtype, jnp.floating):
                    wrong.append(f"{part.name} is {info.dtype}, which is no floating type")
        if wrong:
            raise DataError(f"{self.directory}: tensors do not fit the config: {_some(wrong, 4)}")
        rest = sorted(set(self._names) - used)
        known = self._known()
        ignored = self.description.family.ignored
        unknown = [
            name
            for name in rest
            if not known(name) and not any(re.search(pattern, name) for pattern in ignored)
        ]
        if unknown:
            raise DataError(
                f"{self.directory} holds tensors that {self.description.architecture} does not "
                f"have: {_some(unknown)}"
            )
        return rest

    def _known(self) -> Callable[[str], bool]:
        """Return whether a tensor is one of this family's heads or backbone, read or not."""
        families = self.description.family
        rows = [*families.rows(self.config)]
        for head in families.classes.values():
            rows += head.rows
        number = self.config.num_layers
        names = set()
        for row in rows:
            name = row.name.replace("~", self.prefix)
            for n in range(max(number, self.config.num_decoder_layers)):
                there = name.replace("{n}", str(n + row.start))
                names |= {there, f"{there}.weight", f"{there}.bias"}
        for head in families.classes.values():
            names |= set(head.zeros)
        return names.__contains__

    def load(
        self, abstract: dict[str, jax.ShapeDtypeStruct], shapes: dict, warn: Callable, step=None
    ) -> dict[str, jax.Array]:
        """Return the arrays of `abstract`, each made shard by shard, tensor after tensor.

        Args:
          abstract: {path: shape, dtype and, if any, sharding} to load.
          shapes: {path: real shape}; what is above it in `abstract` is filled with 0.
          warn: called with a line for each tensor that holds NaN or infinity.
          step: called with the number of bytes just read.
        """
        loaded = {}
        # Largest first: the buffers of one parameter exist beside all that is loaded by then.
        for path in sorted(abstract, key=lambda p: -int(np.prod(abstract[p].shape))):
            loaded[path] = self._load(abstract[path], shapes[path], path, warn, step)
        return {path: loaded[path] for path in abstract}

    def _load(self, leaf, real, path: str, warn: Callable, step) -> jax.Array:
        sharding = getattr(leaf, "sharding", None) or jax.sharding.SingleDeviceSharding(
            jax.devices()[0]
        )
        indices = sharding.addressable_devices_indices_map(leaf.shape)
        places = {_key(index, leaf.shape): None for index in indices.values()}
        buffers = {
            key: _buffer([stop - start for start, stop in key], leaf.dtype, real != leaf.shape)
            for key in places
        }
        for part in parts(path, real, self._rows):
            lead = () if part.layer is None else ((part.layer, part.layer + 1),)
            here = {key: b for key, b in buffers.items() if _meets(key, lead)}
            if not here:
                continue
            tensor = self._read(part.name, _in_place(part, here, self._info(part.name).dtype))
            if not np.isfinite(tensor.sum(dtype=np.float32)) and not np.isfinite(tensor).all():
                warn(f"{self.directory}: tensor {part.name} holds NaN or infinity")
            if step is not None:
                step(tensor.nbytes)
            view = part.view(tensor)
            for key, buffer in here.items():
                target, cut = _place(part, key, buffer)
                if not np.may_share_memory(target, tensor):
                    target[...] = view[cut]
        array = jax.make_array_from_callback(
            leaf.shape, sharding, lambda index: buffers[_key(index, leaf.shape)]
        )
        return array.block_until_ready()  # until then the buffers are held


def _key(index: tuple[slice, ...], shape: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    return tuple(s.indices(n)[:2] for s, n in zip(index, shape, strict=True))


def _meets(key, lead) -> bool:
    return not lead or key[0][0] <= lead[0][0] < key[0][1]


def _buffer(shape: list[int], dtype, zeros: bool) -> np.ndarray:
    """Return an array that a CPU device takes over as it is: that asks for 64-byte alignment."""
    nbytes = math.prod(shape) * np.dtype(dtype).itemsize
    raw = (np.zeros if zeros else np.empty)(nbytes + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + nbytes].view(dtype).reshape(shape)


def _place(part: Part, key, buffer: np.ndarray) -> tuple[np.ndarray, tuple[slice, ...]]:
    """Return (what a part fills of a shard, the cut of the part that goes there)."""
    if part.layer is not None:
        buffer, key = buffer[part.layer - key[0][0]], key[1:]
    spans = [(start, min(stop, size)) for (start, stop), size in zip(key, part.shape, strict=True)]
    filled = buffer[tuple(slice(0, max(0, stop - start)) for start, stop in spans)]
    return filled, tuple(slice(start, stop) for start, stop in spans)


def _in_place(part: Part, here: dict, dtype: np.dtype) -> np.ndarray | None:
    """Return the place in the only shard that a tensor can be read into as it lies, or None."""
    if len(here) > 1:
        return None
    ((key, buffer),) = here.items()
    target, _ = _place(part, key, buffer)
    if target.shape != part.shape or target.dtype != dtype or not target.flags.c_contiguous:
        return None
    stored = target.reshape(part.stored) if target.size == math.prod(part.stored) else None
    same = stored is not None and part.view(stored).strides == target.strides
    return stored if same else None


def _some(names: list[str], most: int = 8) -> str:
    shown = ", ".join(names[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")


def tensors_of(
    description: Description, params: dict, shapes: dict[str, tuple[int, ...]], dtype: np.dtype
) -> Iterator[tuple[str, tuple[int, ...], np.dtype, Callable[[], np.ndarray]]]:
    """Yield (name, shape, dtype, function that makes it) of all tensors that a class has.

    Args:
      description: of the class.
      params: {path: array}, stacked and padded as the model has them.
      shapes: {path: real shape}.
      dtype: to write.

    Raises:
      ConfigError: a parameter has no place in this class.
    """
    rows = rows_of(description, prefix_of(description), description.config())
    wanted: dict[str, list[tuple[str, Part]]] = {}
    for path, shape in shapes.items():
        found = parts(path, shape, rows)
        if not found:
            raise ConfigError(f"{description.architecture} has no place for the parameter {path}")
        for part in found:
            wanted.setdefault(part.name, []).append((path, part))

    def make(name: str) -> np.ndarray:
        pieces = wanted[name]
        tensor = np.zeros(pieces[0][1].stored, dtype)
        for path, part in pieces:
            array = params[path] if part.layer is None else params[path][part.layer]
            real = np.asarray(array)[tuple(slice(0, n) for n in part.shape)]
            part.view(tensor)[...] = real
        return tensor

    for name, pieces in wanted.items():
        yield name, pieces[0][1].stored, dtype, lambda name=name: make(name)
    for name in description.head.zeros:
        shape = (1, description.fields["vocab_size"])
        yield name, shape, dtype, lambda shape=shape: np.zeros(shape, dtype)
