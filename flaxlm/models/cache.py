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
    """Return the cache after a prompt of L tokens, with room for `cache_length` with it.

    `kept` is {name: [N, B, L, H, K]} from the stack; segment 0 is the padding at the left.
    """
    length = segments_BL.shape[1]
    room = cache_length - length
    if room < 0:
        raise ConfigError(
            f"a prompt of {length} tokens does not fit into a cache of {cache_length}"
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
        "index": jnp.asarray(length, jnp.int32),
    }


def put(cached: jax.Array, new: jax.Array, index: jax.Array, axis: int) -> jax.Array:
    """Return a cached array with `new` written to the slot `index` of an axis."""
    return jax.lax.dynamic_update_slice_in_dim(cached, new.astype(cached.dtype), index, axis)


def begin_step(cache: dict) -> dict:
    """Return the cache with the slot of the token to come marked as real."""
    segments = cache["segment_ids"]
    ones = jnp.ones((len(segments), 1), jnp.int32)
    return cache | {"segment_ids": put(segments, ones, cache["index"], axis=1)}


def end_step(cache: dict, kept: dict) -> dict:
    """Return the cache with the new token's keys and values [N, B, 1, H, K] written."""
    layers, index = cache["layers"], cache["index"]
    layers = layers | {name: put(layers[name], kept[name], index, axis=2) for name in GROWING}
    return {**cache, "layers": layers, "positions": cache["positions"] + 1, "index": index + 1}
