"""The model families, by name; a new architecture is a file beside these and a row in `MODELS`."""

import functools
import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxlm import tree
from flaxlm.errors import choose
from flaxlm.models import decoder, encoder, encoder_decoder, recurrent
from flaxlm.models.config import TransformerConfig
from flaxlm.models.presets import PRESETS
from flaxlm.models.recurrent import RecurrentConfig

__all__ = [
    "MODELS",
    "PRESETS",
    "Model",
    "RecurrentConfig",
    "TransformerConfig",
    "abstract_params",
    "build",
    "example_batch",
    "init_params",
    "parameter_count",
    "preset",
    "real_shapes",
]


class Model(NamedTuple):
    """One row of `MODELS`: the config's class, the module's, and the logical axes of its paths."""

    config_class: type
    module_class: type[nn.Module]
    axes: tuple


MODELS = {
    "encoder": Model(TransformerConfig, encoder.Encoder, encoder.AXES),
    "decoder": Model(TransformerConfig, decoder.Decoder, decoder.AXES),
    "encoder_decoder": Model(
        TransformerConfig, encoder_decoder.EncoderDecoder, encoder_decoder.AXES
    ),
    "recurrent": Model(RecurrentConfig, recurrent.Recurrent, recurrent.AXES),
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


def example_batch(name: str, batch_size: int = 1, length: int = 2) -> dict[str, jax.Array]:
    """Return the smallest batch that a family accepts, all zeros: parameters need no data."""
    zeros = jnp.zeros((batch_size, length), jnp.int32)
    return {"tokens": zeros} | ({"encoder_tokens": zeros} if name == "encoder_decoder" else {})


def init_params(name: str, config, heads, rng: jax.Array) -> dict:
    """Return freshly initialised parameters, a nested dict of arrays."""
    return build(name, config, heads).init(rng, example_batch(name))["params"]


def abstract_params(name: str, config, heads) -> dict:
    """Return the parameters' shapes and dtypes; nothing is computed."""
    return _abstract_params(name, config, tuple(dict(heads).items()))


@functools.lru_cache(maxsize=32)
def _abstract_params(name: str, config, heads: tuple[tuple[str, int], ...]) -> dict:
    # Whatever mesh is set around this: the one row that shapes are found with divides over none.
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), ())):
        return jax.eval_shape(lambda: init_params(name, config, heads, jax.random.key(0)))


def real_shapes(name: str, config, heads: dict[str, int] | tuple = ()) -> dict[str, tuple]:
    """Return {path: shape} of the parameters, without the padding rows of the vocabulary."""

    def shape(path: str, stored: tuple[int, ...]) -> tuple[int, ...]:
        axes = tree.first_match(MODELS[name].axes, path)
        axes = (None,) * (len(stored) - len(axes)) + tuple(axes)
        real = zip(stored, axes, strict=True)
        return tuple(config.vocab_size if axis == "vocab" else size for size, axis in real)

    leaves = tree.flatten(abstract_params(name, config, heads))
    return {path: shape(path, leaf.shape) for path, leaf in leaves.items()}


def parameter_count(name: str, config, heads: dict[str, int] | tuple = ()) -> int:
    """Return the number of parameters; the padding rows of the vocabulary do not count."""
    return sum(map(math.prod, real_shapes(name, config, heads).values()))
