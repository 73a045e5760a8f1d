"""Decoding on the device: choosing the next token, and the loop that asks for the one after.

Each row draws with a key of its own, so that a sample is a function of (seed, prompt index, sample
index) and not of who else is in the batch.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

STATIC = ("model", "vocab_size", "eos_ids", "greedy", "cut")


def row_keys(seed: int, rows_B: jax.Array, samples_B: jax.Array) -> jax.Array:
    """Return one key [B] for each (prompt index, sample index)."""
    root = jax.random.key(seed)

    def key(row, sample):
        return jax.random.fold_in(jax.random.fold_in(root, row), sample)

    return jax.vmap(key)(rows_B, samples_B)


def filtered(logits_BV: jax.Array, temperature, top_k, top_p) -> tuple[jax.Array, jax.Array]:
    """Return (scaled logits by rank [B, V], token of each rank [B, V]).

    Ranks run from the most likely token down, equal logits by token id. Tokens outside are −inf:
    those of rank `top_k` and beyond (0 keeps all), then those before which the probability of what
    top-k left, at this `temperature` (above 0), has reached `top_p` (in (0, 1]) already (Holtzman
    et al., 2020: the smallest set that reaches it). The first rank is always kept.
    """
    vocabulary = logits_BV.shape[-1]
    order_BV = jnp.argsort(-logits_BV, axis=-1, stable=True)
    ranked_BV = jnp.take_along_axis(logits_BV, order_BV, axis=-1) / temperature
    rank_BV = jax.lax.broadcasted_iota(jnp.int32, ranked_BV.shape, 1)
    limit = jnp.where(top_k > 0, top_k, vocabulary)
    ranked_BV = jnp.where(rank_BV < limit, ranked_BV, -jnp.inf)
    probability_BV = jax.nn.softmax(ranked_BV, axis=-1)
    before_BV = jnp.cumsum(probability_BV, axis=-1) - probability_BV
    # At top_p = 1 rounding of the cumulative sum must not drop the tail.
    keep_BV = (before_BV < top_p) | (top_p >= 1.0) | (rank_BV == 0)
    return jnp.where(keep_BV, ranked_BV, -jnp.inf), order_BV


def sample(
    logits_BV: jax.Array, keys_B: jax.Array, temperature, top_k, top_p, *, greedy: bool, cut: bool
) -> tuple[jax.Array, jax.Array]:
    """Return (tokens int32 [B], their log-probabilities under the model float32 [B]).

    Log-probabilities are of the model itself, before temperature and cuts, so that samples drawn
    in different ways can be compared.

    Args:
      logits_BV: the model's scores; −inf for rows that are no token.
      keys_B: a random key a row, used up by this call.
      temperature, top_k, top_p: scalars, see `filtered`.
      greedy: take the most likely token (static); keys and the rest are not looked at.
      cut: whether top-k or top-p are on (static): without them no sort is needed.
    """
    logits_BV = logits_BV.astype(jnp.float32)
    draw = jax.vmap(jax.random.categorical)
    if greedy:
        tokens_B = jnp.argmax(logits_BV, axis=-1)
    elif cut:
        ranked_BV, order_BV = filtered(logits_BV, temperature, top_k, top_p)
        rank_B = draw(keys_B, ranked_BV)
        tokens_B = jnp.take_along_axis(order_BV, rank_B[:, None], axis=-1)[:, 0]
    else:
        tokens_B = draw(keys_B, logits_BV / temperature)
    tokens_B = tokens_B.astype(jnp.int32)
    logprobs_BV = jax.nn.log_softmax(logits_BV, axis=-1)
    return tokens_B, jnp.take_along_axis(logprobs_BV, tokens_B[:, None], axis=-1)[:, 0]


class Settings(NamedTuple):
    """The numbers of `sample` that change without compiling anew (scalars on the device)."""

    temperature: jax.Array
    top_k: jax.Array
    top_p: jax.Array


class Decoding(NamedTuple):
    """A batch on its way: T is the room for new tokens, `step` of which are written."""

    step: jax.Array
    keys_B: jax.Array
    tokens_BT: jax.Array
    logprobs_BT: jax.Array
    done_B: jax.Array
    cache: Any


def _append(
    decoding: Decoding,
    logits_BV: jax.Array,
    cache,
    settings: Settings,
    vocab_size,
    eos_ids,
    **modes,
) -> Decoding:
    """Return the decoding with one token more; rows that are done get id 0 and nothing counts."""
    logits_BV = logits_BV[:, :vocab_size]
    step, done_B = decoding.step, decoding.done_B
    keys_B = jax.vmap(jax.random.fold_in, in_axes=(0, None))(decoding.keys_B, step)
    tokens_B, logprobs_B = sample(logits_BV, keys_B, *settings, **modes)
    tokens_B = jnp.where(done_B, 0, tokens_B)
    logprobs_B = jnp.where(done_B, 0.0, logprobs_B)

    def write(array_BT, column_B):
        return jax.lax.dynamic_update_slice_in_dim(array_BT, column_B[:, None], step, axis=1)

    return decoding._replace(
        step=step + 1,
        tokens_BT=write(decoding.tokens_BT, tokens_B),
        logprobs_BT=write(decoding.logprobs_BT, logprobs_B),
        done_B=done_B | jnp.isin(tokens_B, jnp.array(eos_ids)),
        cache=cache,
    )


@functools.partial(jax.jit, static_argnames=(*STATIC, "cache_length", "room"))
def start(
    model, params, batch, keys_B, live_B, settings, *, cache_length, room, **modes
) -> Decoding:
    """Return the decoding after the prompts and the first new token.

    Args:
      model: a Linen module with `prefill` and `decode_step` (static, as every name after `*`).
      params: its parameters.
      batch: what `prefill` takes, [B, …]; prompts are padded on the left.
      keys_B: from `row_keys`.
      live_B: False for rows that only fill the batch.
      settings: temperature, top-k, top-p.
      cache_length: places in the key-value cache, prompt and new tokens together.
      room: T, the most new tokens that will be asked for.
      modes: `vocab_size`, the ids that the tokenizer has: the model's further rows are never
        chosen; `eos_ids`, the tokens that end a row; `greedy` and `cut`, see `sample`.
    """
    logits_BV, cache = model.apply({"params": params}, batch, cache_length, method="prefill")
    rows = keys_B.shape[0]
    empty = Decoding(
        step=jnp.zeros((), jnp.int32),
        keys_B=keys_B,
        tokens_BT=jnp.zeros((rows, room), jnp.int32),
        logprobs_BT=jnp.zeros((rows, room), jnp.float32),
        done_B=~live_B,
        cache=None,
    )
    return _append(empty, logits_BV, cache, settings, **modes)


@functools.partial(jax.jit, static_argnames=STATIC, donate_argnames="decoding")
def advance(model, params, decoding: Decoding, until, settings, **modes) -> Decoding:
    """Return the decoding at step `until` (a traced scalar), or when every row has ended."""

    def going(decoding: Decoding):
        return (decoding.step < until) & ~jnp.all(decoding.done_B)

    def body(decoding: Decoding) -> Decoding:
        last_B1 = jax.lax.dynamic_slice_in_dim(decoding.tokens_BT, decoding.step - 1, 1, axis=1)
        logits_BV, cache = model.apply(
            {"params": params}, last_B1, decoding.cache, method="decode_step"
        )
        return _append(decoding, logits_BV, cache, settings, **modes)

    return jax.lax.while_loop(going, body, decoding)
