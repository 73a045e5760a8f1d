"""The tensors that a parameter of ours is made of, by name, and those of a class, to write."""

import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from flaxlm.errors import ConfigError
from flaxlm.interop.config import Description
from flaxlm.interop.spec import Row


class Part(NamedTuple):
    """One tensor that a parameter is made of, or a part of one.

    Attributes:
      name: of the tensor, in which the part lies as `row` says.
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
        pieces = parts(path, shape, rows)
        if not pieces:
            raise ConfigError(f"{description.architecture} has no place for the parameter {path}")
        for part in pieces:
            wanted.setdefault(part.name, []).append((path, part))

    def make(pieces: list[tuple[str, Part]]) -> np.ndarray:
        tensor = np.zeros(pieces[0][1].stored, dtype)
        for path, part in pieces:
            array = params[path] if part.layer is None else params[path][part.layer]
            part.view(tensor)[...] = np.asarray(array)[tuple(slice(0, n) for n in part.shape)]
        return tensor

    for name, pieces in wanted.items():
        yield name, pieces[0][1].stored, dtype, functools.partial(make, pieces)
    for name in description.head.zeros:
        shape = (1, description.fields["vocab_size"])
        yield name, shape, dtype, functools.partial(np.zeros, shape, dtype)
