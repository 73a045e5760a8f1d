"""What a table of `names/` is made of: config keys, tensor names and how tensors lie.

Everything here works in both directions, so that what can be read can be written.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from flaxlm.errors import ConfigError, choose


class Key(NamedTuple):
    """One key of a `config.json` and the field of `TransformerConfig` that it decides.

    Attributes:
      hf: its name there.
      ours: the field; several fields, joined by spaces, all get the value.
      default: what a missing key stands for, in the library that wrote it.
      read, write: between the two values.
    """

    hf: str
    ours: str
    default: Any
    read: Callable = lambda value: value
    write: Callable = lambda value: value


ACTIVATIONS = {"gelu": "gelu", "gelu_python": "gelu"}
ACTIVATIONS |= dict.fromkeys(("gelu_new", "gelu_pytorch_tanh", "gelu_fast"), "gelu_tanh")
ACTIVATIONS |= {"relu": "relu", "silu": "silu", "swish": "silu", "tanh": "tanh"}


def activation(hf: str, default: str, ours: str = "activation") -> Key:
    """Return the Key of an activation function."""
    return Key(
        *(hf, ours, default),
        read=lambda name: ACTIVATIONS[choose(hf, name, ACTIVATIONS)],
        write=lambda name: {"gelu_tanh": "gelu_pytorch_tanh"}.get(name, name),
    )


# What most families call the fields that `sizes` sets.
SIZES = "vocab_size hidden_size num_hidden_layers num_attention_heads intermediate_size "
SIZES += "max_position_embeddings initializer_range"


def sizes(*defaults: int | None, names: str = SIZES) -> list[Key]:
    """Return the keys of a family's sizes, of which it has the `defaults`, under their `names`.

    In this order: vocabulary, width, layers, heads, width of the feed-forward part, length.
    """
    fields = "vocab_size width num_layers num_heads mlp_width max_length init_std".split()
    return [Key(*key) for key in zip(names.split(), fields, (*defaults, 0.02), strict=True)]


@dataclasses.dataclass(frozen=True)
class Layout:
    """How one of our arrays lies in a tensor of a file.

    A tensor may hold several of ours: `parts` of them stand one after the other along the output
    (`rows`: [parts · out, in], `columns`: [in, parts · out]), or within each head (`heads`:
    [heads · parts · head size, in]).

    Attributes:
      order: rows (torch's Linear, [out, in]), columns ([in, out]) or heads.
      part: which of the parts.
      parts: how many there are.
      inputs: how many leading dimensions of our kernel are inputs.
    """

    order: str = "rows"
    part: int = 0
    parts: int = 1
    inputs: int = 1

    def shape(self, leaf: str, ours: tuple[int, ...]) -> tuple[int, ...]:
        """Return the tensor's shape for an array of ours (a kernel, or anything else)."""
        if leaf != "kernel":
            return (self.parts * math.prod(ours),) if leaf == "bias" else tuple(ours)
        rows = (self.parts * math.prod(ours[self.inputs :]), math.prod(ours[: self.inputs]))
        return rows[::-1] if self.order == "columns" else rows

    def view(self, tensor: np.ndarray, leaf: str, ours: tuple[int, ...]) -> np.ndarray:
        """Return a view of `tensor` in our shape: to read from, or to write into."""
        if leaf not in ("kernel", "bias"):
            return tensor.reshape(ours)
        n = self.inputs if leaf == "kernel" else 0
        ins, outs = ours[:n], ours[n:]
        if self.order == "columns" and leaf == "kernel":
            return tensor.reshape(*ins, self.parts, *outs)[(slice(None),) * n + (self.part,)]
        if self.order == "heads":
            tensor = tensor.reshape(outs[0], self.parts, *outs[1:], *ins)[:, self.part]
        else:
            tensor = tensor.reshape(self.parts, *outs, *ins)[self.part]
        return np.moveaxis(tensor, range(len(outs)), range(-len(outs), 0)) if ins else tensor


LINEAR = Layout()
JOINING = Layout(inputs=2)  # an attention's output projection: [heads, head size] come in


class Row(NamedTuple):
    """Where parameters of ours stand in a file.

    Attributes:
      path: a parameter, or the module whose kernel or scale is `name.weight`, and bias `name.bias`.
      name: of the tensor or torch module; `{n}` is the layer, and `~` the backbone's prefix.
      start: the layer that the first of our stacked layers is.
    """

    path: str
    name: str
    layout: Layout = LINEAR
    start: int = 0


class Head(NamedTuple):
    """A class of a family: the backbone with heads.

    Attributes:
      heads: names of heads of ours, whose parameters stand in `rows`.
      model, prefix: as the family's, where they are others.
      fields: of the config, besides the family's.
      zeros: tensors [1, V] that are no parameters; they must be 0, and are written so.
    """

    heads: tuple[str, ...] = ()
    rows: tuple[Row, ...] = ()
    model: str = ""
    fields: dict = {}  # noqa: RUF012  (never changed)
    zeros: tuple[str, ...] = ()
    prefix: str = ""


@dataclasses.dataclass(frozen=True)
class Family:
    """One table of names: all that is known of a `model_type`.

    Attributes:
      model_types: {model_type: beginning of its class names}.
      model: key of MODELS.
      prefix: name of the backbone in classes with heads.
      prefixed: ends of the classes that have the prefix; empty for all but the bare backbone.
      fixed: {key: the values that are understood}; the first is the default.
      constants: fields of ours that all of its models have.
      classes: {end of the class name: Head}.
      rows: config -> rows of the backbone.
      aliases: (regex, replacement) of names that older files have.
      twins: names of one tensor, ours first: a file may hold it under any of them.
      ignored: regexes of tensors that nothing reads, besides those that no family reads.
      unused: keys of config.json that change nothing in these classes.
      finish: (fields, keys not read yet) -> None; reads what a Key cannot, by popping it.
      finish_write: (config, the written keys) -> None; the other way.
    """

    model_types: dict[str, str]
    model: str
    prefix: str
    keys: tuple[Key, ...]
    fixed: dict[str, tuple]
    constants: dict[str, Any]
    classes: dict[str, Head]
    rows: Callable[[Any], list[Row]]
    prefixed: tuple[str, ...] = ()
    aliases: tuple[tuple[str, str], ...] = ()
    twins: tuple[tuple[str, ...], ...] = ()
    ignored: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    finish: Callable[[dict, dict], None] = lambda fields, unread: None
    finish_write: Callable[[Any, dict], None] = lambda config, out: None

    def architectures(self, model_type: str) -> dict[str, Head]:
        """Return {class name: Head} of one of its model types."""
        begin = self.model_types[model_type]
        return {begin + end: head for end, head in self.classes.items()}


def need(condition: bool, message: str) -> None:
    """Raise ConfigError unless a config is one that can be computed."""
    if not condition:
        raise ConfigError(f"config.json: {message}")
