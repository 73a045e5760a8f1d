"""Parameters of ours and tensors of a Hugging Face directory, each found by the other's name."""

import collections
import dataclasses
import math
import pathlib
import re
import warnings
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from flaxlm.errors import ConfigError, DataError
from flaxlm.interop.config import Description, describe
from flaxlm.interop.parts import Part, parts, prefix_of, rows_of
from flaxlm.interop.spec import Head
from flaxlm.interop.tensors import Info, Tensors
from flaxlm.models import real_shapes

ALIASES = (
    (r"(LayerNorm|layer_norm)\.gamma$", r"\1.weight"),
    (r"(LayerNorm|layer_norm)\.beta$", r"\1.bias"),
)
# What torch.compile and DataParallel put before names.
WRAPPER = re.compile(r"^(?:module\.|_orig_mod\.)+|(?<=\.)_orig_mod\.")
# Buffers and parts of a loss, which are no parameters of any model.
NO_PARAMETERS = re.compile(
    r"(?:^|\.)(?:embeddings\.(?:position_ids|token_type_ids)|(?:rotary_emb\.)?inv_freq"
    r"|(?:attn|attention)\.(?:bias|masked_bias)|(?:encoder|decoder)\.version"
    r"|(?:loss|loss_fct|loss_fn|loss_func|criterion)\..*)$"
)
OUTPUTS = ("heads/lm", "heads/mlm/kernel")


class Weights:
    """The parameters that a directory offers, by our paths.

    Attributes:
      description: of its `config.json`; `tied` is decided by the tensors, as the library that
        writes them does: two different tables are two tables, whatever the config says.
      prefix: of the backbone's tensors in these files.
    """

    def __init__(self, directory: pathlib.Path, description: Description):
        self.directory = directory
        self.tensors = Tensors(directory)
        self._names: dict[str, str] = {}
        self._wrapped = ""
        for name in self.tensors.infos:
            known = WRAPPER.sub("", name)
            self._wrapped = self._wrapped or (name if known != name else "")
            for pattern, replacement in ALIASES + description.family.aliases:
                known = re.sub(pattern, replacement, known)
            if known in self._names:
                raise DataError(f"{directory}: {name} and {self._names[known]} are both {known}")
            self._names[known] = name
        self.prefix = self._prefix(description)
        self._twins = self._name_twins(description)
        if not description.raw.get("architectures"):
            description = self._class(description)
        self.description = self._untie(description)
        self.config = self.description.config()
        self._rows = rows_of(self.description, self.prefix, self.config)
        for name in self.description.head.zeros:
            if name in self._names and np.any(self._read(name)):
                raise ConfigError(f"{directory}: {name} is not 0, which is not supported")

    @property
    def dtype(self) -> np.dtype:
        """The dtype of most of the parameters."""
        sizes: collections.Counter = collections.Counter()
        for info in self.tensors.infos.values():
            sizes[info.dtype] += info.end - info.begin
        return sizes.most_common(1)[0][0]

    def _info(self, name: str) -> Info:
        return self.tensors.infos[self._names[name]]

    def _prefix(self, description: Description) -> str:
        """Return the prefix that the table of tokens is found with: files may lack or have it."""
        rows = description.family.rows(description.config())
        expected = prefix_of(description)
        for prefix in (expected, "", f"{description.family.prefix}."):
            names = (row.name.replace("~", prefix).replace("{n}", str(row.start)) for row in rows)
            if any(name in self._names or f"{name}.weight" in self._names for name in names):
                return prefix
        raise DataError(
            f"{self.directory} has no tensor {rows[0].name.replace('~', expected)}, which "
            f"{description.architecture} reads; its tensors are of another architecture"
        )

    def _name_twins(self, description: Description) -> list[tuple[str, str]]:
        """Give tensors that go by several names the first one; return what copies are left."""
        family = description.family
        groups = [[name.replace("~", self.prefix) for name in names] for names in family.twins]
        token = family.rows(description.config())[0].name.replace("~", self.prefix)
        outputs = list(dict.fromkeys(_outputs(*family.classes.values())))
        tied = description.fields.get("tied", True)
        if tied and description.raw.get("tie_word_embeddings") is not False:
            groups.append([token, *outputs])
        copies = []
        for first, *others in groups:
            there = [name for name in others if name in self._names]
            if first not in self._names and there:
                self._names[first] = self._names.pop(there.pop(0))
            copies += [(first, name) for name in there if name not in outputs]
        if token not in self._names:
            twin = next((name for name in outputs if name in self._names), "")
            also = f"; {twin} is there, but config.json says that the two are not one table"
            raise DataError(
                f"{self.directory} has no tensor {token}, which {description.architecture} reads"
                + (also if twin else "")
            )
        return copies

    def _class(self, description: Description) -> Description:
        """Return the description of the class whose heads are in the file, if it is only one."""
        best, most = [], 0
        for name, head in description.family.architectures(description.model_type).items():
            # The backbone's own pooler says nothing, and an output table may be tied.
            own = [row for row in head.rows if row.path not in OUTPUTS and row.name[0] != "~"]
            if any(not {row.name, f"{row.name}.weight"} & self._names.keys() for row in own):
                continue
            described = self._untie(describe(description.raw | {"architectures": [name]}))
            self._rows = rows_of(described, self.prefix, described.config())
            shapes = real_shapes(described.model, described.config(), described.heads)
            heads = 2 * len(own) + ("lm" in described.heads)
            if heads >= most and all(self._complete(path, shapes[path]) for path in shapes):
                best, most = [described, *(best if heads == most else [])], heads
        if most and len(best) > 1:
            names = [described.architecture for described in reversed(best)]
            raise ConfigError(
                f"{self.directory}/config.json names no class in architectures, and its tensors "
                f"may be those of {' or '.join(names)}: write the right one there"
            )
        return best[-1] if best else description

    def _untie(self, description: Description) -> Description:
        tied = description.fields.get("tied", True)
        token = rows_of(description, self.prefix, description.config())["embed/token"].name
        for name in _outputs(description.head):
            if tied and name in self._names:
                tied = self._same(name, token)
        return dataclasses.replace(description, fields=description.fields | {"tied": tied})

    def _same(self, one: str, other: str) -> bool:
        """Return whether two tensors are the same."""
        alike = self._info(one)[1:3] == self._info(other)[1:3]
        return alike and np.array_equal(self._read(one), self._read(other))

    def _read(self, name: str, out: np.ndarray | None = None) -> np.ndarray:
        return self.tensors.read(self._names[name], out)

    def offers(self, shapes: dict[str, tuple[int, ...]]) -> list[str]:
        """Return the paths among `shapes` whose tensors are all there."""
        return [path for path, shape in shapes.items() if self._complete(path, shape)]

    def _complete(self, path: str, shape: tuple[int, ...]) -> bool:
        names = [part.name for part in parts(path, shape, self._rows)]
        missing = [name for name in names if name not in self._names]
        if missing and len(missing) < len(names):
            raise DataError(f"{self.directory} lacks {_some(missing)}")
        return bool(names) and not missing

    def fits(self, path: str, shape: tuple[int, ...]) -> bool:
        """Return whether a parameter's tensors, which are there, have the right shapes."""
        pieces = parts(path, shape, self._rows)
        return all(self._info(part.name).shape == part.stored for part in pieces)

    def check(self, shapes: dict[str, tuple[int, ...]]) -> list[str]:
        """Return the names of tensors that are not read, for parameters of these real shapes.

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
        unread = sorted(set(self._names) - used)
        known = self._known()
        ignored = (NO_PARAMETERS, *self.description.family.ignored)
        unknown = [
            name
            for name in unread
            if name not in known and not any(re.search(pattern, name) for pattern in ignored)
        ]
        if unknown:
            raise DataError(
                f"{self.directory} holds tensors that {self.description.architecture} does not "
                f"have: {_some(unknown)}"
            )
        return unread

    def _known(self) -> set[str]:
        """Return the names of all tensors of this family, in any of its classes, read or not."""
        family = self.description.family
        heads = family.classes.values()
        names = {name for _, name in self._twins}.union(*(head.zeros for head in heads))
        depth = max(self.config.num_layers, self.config.num_decoder_layers)
        for row in (*family.rows(self.config), *(row for head in heads for row in head.rows)):
            name = row.name.replace("~", self.prefix)
            for n in range(depth):
                numbered = name.replace("{n}", str(n + row.start))
                names |= {numbered, f"{numbered}.weight", f"{numbered}.bias"}
        return names

    def load(
        self, abstract: dict[str, jax.ShapeDtypeStruct], shapes: dict, step: Callable[[int], None]
    ) -> dict[str, jax.Array]:
        """Return the arrays of `abstract`, each made shard by shard, tensor after tensor.

        A tensor that holds NaN or infinity is warned of.

        Args:
          abstract: {path: shape, dtype and, if any, sharding} to load.
          shapes: {path: real shape}; what is above it in `abstract` is filled with 0.
          step: called with the number of bytes just read.
        """
        if self._wrapped:
            line = f"{self.directory}: names like {self._wrapped} are read without their wrapper's"
            warnings.warn(line, stacklevel=2)
        for first, name in self._twins:
            if not self._same(first, name):
                raise DataError(f"{self.directory}: {name} is not {first}; they must be one tensor")
        loaded = {}
        # Largest first: the buffers of one parameter exist beside all that is loaded by then.
        for path in sorted(abstract, key=lambda p: -int(np.prod(abstract[p].shape))):
            loaded[path] = self._load(abstract[path], shapes[path], path, step)
        return {path: loaded[path] for path in abstract}

    def _load(self, leaf, real, path: str, step: Callable) -> jax.Array:
        sharding = leaf.sharding or jax.sharding.SingleDeviceSharding(jax.devices()[0])
        indices = sharding.addressable_devices_indices_map(leaf.shape).values()
        buffers = {
            key: _buffer([stop - start for start, stop in key], leaf.dtype, real != leaf.shape)
            for key in dict.fromkeys(_key(index, leaf.shape) for index in indices)
        }
        for part in parts(path, real, self._rows):
            n = part.layer
            here = {k: b for k, b in buffers.items() if n is None or k[0][0] <= n < k[0][1]}
            if not here:
                continue
            tensor = self._read(part.name, _in_place(part, here, self._info(part.name).dtype))
            if not np.isfinite(tensor.sum(dtype=np.float32)) and not np.isfinite(tensor).all():
                line = f"{self.directory}: tensor {part.name} holds NaN or infinity"
                warnings.warn(line, stacklevel=2)
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


def _outputs(*heads: Head) -> list[str]:
    """Return the names of the output tables of classes, which may be the table of tokens."""
    rows = [row for head in heads for row in head.rows if row.path in OUTPUTS]
    return [row.name if row.name.endswith(".weight") else f"{row.name}.weight" for row in rows]


def _key(index: tuple[slice, ...], shape: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    return tuple(s.indices(n)[:2] for s, n in zip(index, shape, strict=True))


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
