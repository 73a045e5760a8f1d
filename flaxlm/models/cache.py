"""The decoding cache: an explicit pytree that goes in and out of every step.

`layers` holds keys and values of all layers, [N, B, M, H, K], and for an encoder-decoder
`cross_key`, `cross_value`; `segment_ids` int32 [B, M] is 1 on slots that hold a real token;
`positions` int32 [B, 1] and `index` (scalar) are those of the next token. Prompts are padded
on the left, so all rows write the same slot.
"""

import jax
import jax.numpy as jnp

from flaxlm.errors import ConfigError

GROWING = ("key", "value")


def start_cache(config, kept: dict, segments_BL, positions_BL, cache_length: int) -> dict:
    """Return the cache after a prompt of L tokens, with room for `cache_length` tokens.

    Args:
      config: the model's; a learned position table bounds `cache_length`.
      kept: {name: [N, B, L, H, K]} from the stack.
      segments_BL: int32, 0 on the padding at the left.
      positions_BL: int32, those of the prompt.
      cache_length: tokens of prompt and continuation together.
    """
    room = cache_length - segments_BL.shape[1]
    if room < 0:
        raise ConfigError(
            f"a prompt of {segments_BL.shape[1]} tokens does not fit into a cache of {cache_length}"
        )
    if config.positions == "learned" and cache_length > config.max_length:
        raise ConfigError(
            f"a cache of {cache_length} tokens is above model.max_length={config.max_length}"
        )

    def grow(name, x):
        return jnp.pad(x, [(0, 0), (0, 0), (0, room), (0, 0), (0, 0)]) if name in GROWING else x

    return {
        "layers": {name: grow(name, x) for name, x in kept.items()},
        "segment_ids": jnp.pad((segments_BL != 0).astype(jnp.int32), [(0, 0), (0, room)]),
        "positions": positions_BL[:, -1:] + 1,
        "index": jnp.asarray(segments_BL.shape[1], jnp.int32),
    }


def begin_step(cache: dict) -> dict:
    """Return the cache with the slot of the token to come marked as real."""
    ones = jnp.ones((cache["segment_ids"].shape[0], 1), jnp.int32)
    segments = jax.lax.dynamic_update_slice_in_dim(
        cache["segment_ids"], ones, cache["index"], axis=1
    )
    return cache | {"segment_ids": segments}


def end_step(cache: dict, kept: dict) -> dict:
    """Return the cache with the new token's keys and values [N, B, 1, H, K] written."""
    layers = dict(cache["layers"])
    for name in GROWING:
        new = kept[name].astype(layers[name].dtype)
        layers[name] = jax.lax.dynamic_update_slice_in_dim(
            layers[name], new, cache["index"], axis=2
        )
    return cache | {
        "layers": layers,
        "positions": cache["positions"] + 1,
        "index": cache["index"] + 1,
    }
