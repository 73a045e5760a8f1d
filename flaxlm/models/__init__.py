"""The model families, by name; a new architecture is a file beside these and a row in `MODELS`."""

import functools
import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxlm import tree
from flaxlm.errors import choose
from flaxlm.models import families, recurrent
from flaxlm.models.config import TransformerConfig
from flaxlm.models.presets import PRESETS
from flaxlm.models.recurrent import RecurrentConfig


class Model(NamedTuple):
    """One row of `MODELS`. Nothing outside `models` asks for a family's name, but for these traits.

    Attributes:
      config_class, module_class: of the family.
      axes: the logical axes of its parameters' paths.
      heads: the names of the heads that it offers.
      writes: it writes text token by token: its module has `prefill` and `decode_step`.
      encodes: it reads with an encoder of its own, the batch's `encoder_` arrays, and what it
        writes begins anew; others go on from what they have read.
      prefix: tokens of a `prefix_mask` see each other in both directions.
    """

    config_class: type
    module_class: type[nn.Module]
    axes: tuple
    heads: tuple[str, ...]
    writes: bool = False
    encodes: bool = False
    prefix: bool = False

    @property
    def bidirectional(self) -> bool:
        """Whether a token sees what stands behind it: a text is read whole, masks are filled."""
        return not self.writes


def _transformer(module_class: type[nn.Module], heads: tuple[str, ...], **traits: bool) -> Model:
    return Model(TransformerConfig, module_class, families.AXES, heads, **traits)


MODELS = {
    "encoder": _transformer(families.Encoder, families.ENCODER_HEADS),
    "decoder": _transformer(families.Decoder, families.HEADS, writes=True, prefix=True),
    "encoder_decoder": _transformer(
        families.EncoderDecoder, families.HEADS, writes=True, encodes=True
    ),
    "recurrent": Model(
        RecurrentConfig, recurrent.Recurrent, recurrent.AXES, recurrent.HEADS, writes=True
    ),
}


def build(name: str, config, heads: dict[str, int] | tuple = ()) -> nn.Module:
    """Return the module of a family with the heads {name: size}, size 0 for the vocabulary."""
    model = MODELS[choose("model.name", name, MODELS)]
    return model.module_class(config, tuple(dict(heads).items()))


def preset(name: str, **changes) -> tuple[str, Any]:
    """Return (family, config) of a published architecture, with changed fields."""
    fields = PRESETS[choose("model.preset", name, PRESETS)] | changes
    family = fields.pop("name")
    return family, MODELS[family].config_class(**fields)


def init_params(name: str, config, heads, rng: jax.Array, rows: int = 1) -> dict:
    """Return freshly initialised parameters, a nested dict; `rows` divide over the mesh in use."""
    zeros = jnp.zeros((rows, 2), jnp.int32)  # shapes do not depend on data
    batch = {"tokens": zeros} | ({"encoder_tokens": zeros} if MODELS[name].encodes else {})
    return build(name, config, heads).init(rng, batch)["params"]


def abstract_params(name: str, config, heads) -> dict:
    """Return the parameters' shapes and dtypes; nothing is computed."""
    return _abstract_params(name, config, tuple(dict(heads).items()))


@functools.lru_cache(maxsize=32)
def _abstract_params(name: str, config, heads: tuple[tuple[str, int], ...]) -> dict:
    # Whatever mesh is set around this: the one row that shapes are found with divides over none.
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), ())):
        return jax.eval_shape(lambda: init_params(name, config, heads, jax.random.key(0)))


def real_shapes(name: str, config, heads: dict[str, int] | tuple = ()) -> dict[str, tuple]:
    """Return {path: shape} of a model's parameters, without the vocabulary's padding rows."""
    return _without_padding(name, config, abstract_params(name, config, heads))


def _without_padding(name: str, config, params) -> dict[str, tuple]:
    def shape(path: str, stored: tuple[int, ...]) -> tuple[int, ...]:
        axes = tree.first_match(MODELS[name].axes, path)
        axes = (None,) * (len(stored) - len(axes)) + tuple(axes)
        real = zip(stored, axes, strict=True)
        return tuple(config.vocab_size if axis == "vocab" else size for size, axis in real)

    return {path: shape(path, leaf.shape) for path, leaf in tree.flatten(params).items()}


def parameter_count(name: str, config, params) -> int:
    """Return the number of (abstract) parameters; the vocabulary's padding rows do not count."""
    return sum(map(math.prod, _without_padding(name, config, params).values()))
