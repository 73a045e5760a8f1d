"""Beam search on the device: the likeliest whole texts, not the likeliest next tokens.

A row keeps its K likeliest unfinished texts (live) and the K best finished ones. Texts are
compared by log p / ((5 + n) / 6)^α of their n tokens, EOS included (Wu et al., 2016, equation 14;
α = 0 compares log p itself).

Dimension key: B rows, K beams, R = B · K, T room for new tokens, V vocabulary.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Finished(NamedTuple):
    """The finished texts of every row, best first; a text that is not there has score −inf."""

    scores_BK: jax.Array
    logprobs_BK: jax.Array
    tokens_BKT: jax.Array
    lengths_BK: jax.Array


class Beams(NamedTuple):
    """A batch on its way: `step` tokens of every live text are written."""

    step: jax.Array
    logprobs_BK: jax.Array
    tokens_BKT: jax.Array
    done_B: jax.Array
    finished: Finished
    cache: Any


def penalty(length: jax.Array, alpha: jax.Array) -> jax.Array:
    """Return ((5 + length) / 6)^α, which the log-probability of a text is divided by."""
    return ((5.0 + length) / 6.0) ** alpha


def _row_axes(prefill, batch: dict):
    """Return, for each array of a cache, the axis that runs over rows; −1 where there is none.

    A cache is whatever its model makes of it, so it is asked for twice as many rows.
    """

    def cache(times: int):
        return prefill({name: jnp.repeat(x, times, axis=0) for name, x in batch.items()})[1]

    def axis(one, two) -> int:
        sizes = zip(one.shape, two.shape, strict=True)
        return next((axis for axis, (a, b) in enumerate(sizes) if a != b), -1)

    once, twice = (jax.eval_shape(functools.partial(cache, times)) for times in (1, 2))
    return jax.tree.map(axis, once, twice)


def _best(scores: jax.Array, count: int, *arrays: jax.Array) -> tuple[jax.Array, ...]:
    """Return the `count` highest scores [B, count] and the entries of arrays [B, N, …] there."""
    values, index = jax.lax.top_k(scores, count)
    picked = [
        jnp.take_along_axis(x, index.reshape(*index.shape, *[1] * (x.ndim - 2)), axis=1)
        for x in arrays
    ]
    return values, *picked


def _grow(beams: Beams, logits_RV: jax.Array, limit, alpha, vocab_size, eos_ids, count):
    """Return the beams with one token more, and for each row of the cache the row it goes on from.

    With E ids that end a text, at most E K of the (E + 1) K likeliest continuations do, so K go on.
    Only those among the K likeliest finish a text; at the limit all of these do, as they are.
    """
    rows, width = beams.logprobs_BK.shape
    logprobs_RV = jax.nn.log_softmax(logits_RV[:, :vocab_size].astype(jnp.float32), axis=-1)
    totals_BKV = beams.logprobs_BK[..., None] + logprobs_RV.reshape(rows, width, -1)
    # Fewer than (E + 1) K continuations are all of them.
    wanted = min((len(eos_ids) + 1) * width, width * vocab_size)
    totals, index = jax.lax.top_k(totals_BKV.reshape(rows, -1), wanted)
    beam, token = index // vocab_size, (index % vocab_size).astype(jnp.int32)
    texts = jnp.take_along_axis(beams.tokens_BKT, beam[..., None], axis=1)
    texts = jax.lax.dynamic_update_slice_in_dim(texts, token[..., None], beams.step, axis=2)
    length = beams.step + 1
    ends = jnp.isin(token, jnp.array(eos_ids))

    closes = (ends | (length >= limit)) & (jnp.arange(wanted) < width)[None]
    scores = jnp.where(closes, totals / penalty(length, alpha), -jnp.inf)
    lengths = jnp.full(scores.shape, length, jnp.int32)
    entries = [scores, totals, texts, lengths]
    pool = [jnp.concatenate(pair, axis=1) for pair in zip(beams.finished, entries, strict=True)]
    finished = Finished(*_best(pool[0], width, *pool[1:]))
    # A row that is done stays as it is, whoever else the batch goes on for.
    finished = jax.tree.map(
        lambda old, new: jnp.where(beams.done_B.reshape(-1, *[1] * (old.ndim - 1)), old, new),
        beams.finished,
        finished,
    )

    live, texts, beam = _best(jnp.where(ends, -jnp.inf, totals), width, texts, beam)
    # log p only falls and the penalty only grows, so no live text gets above this.
    bound_B = live[:, 0] / penalty(limit, alpha)
    grown = beams._replace(
        step=length,
        logprobs_BK=live,
        tokens_BKT=texts,
        done_B=beams.done_B | (finished.scores_BK[:, count - 1] >= bound_B),
        finished=finished,
    )
    return grown, (jnp.arange(rows)[:, None] * width + beam).reshape(-1)


@functools.partial(
    jax.jit,
    static_argnames=("model", "cache_length", "room", "vocab_size", "eos_ids", "width", "count"),
)
def search(
    model, params, batch, live_B, limit, alpha, *, cache_length, room, width, **modes
) -> Finished:
    """Return the best `count` texts of each row, at most K, best first.

    The search of a row ends when no live text can still come before its `count` best finished
    ones (so it ends early only where that changes nothing), or after `limit` tokens, when the
    live texts count as they are.

    Args:
      model, params, batch, live_B, cache_length: see `sampling.start`.
      limit: the most new tokens, at most T (scalar).
      alpha: of the length penalty, 0 or more (scalar).
      room: T.
      width: K.
      modes: `vocab_size` and `eos_ids`, see `sampling.start`; `count`, how many texts.
    """
    rows = live_B.shape[0]

    def prefill(batch):
        return model.apply({"params": params}, batch, cache_length, method="prefill")

    logits_BV, cache = prefill(batch)
    axes = _row_axes(prefill, batch)
    cache = jax.tree.map(
        lambda x, axis: x if axis < 0 else jnp.repeat(x, width, axis=axis), cache, axes
    )

    def grow(beams: Beams, logits_RV, cache) -> Beams:
        grown, source_R = _grow(beams, logits_RV, limit, alpha, **modes)

        def follow(new, old, axis):
            # What a step leaves alone (an encoded text) is the same in all beams of a row.
            return new if new is old or axis < 0 else jnp.take(new, source_R, axis=axis)

        return grown._replace(cache=jax.tree.map(follow, cache, beams.cache, axes))

    # All beams begin as one: the others count from the second token on.
    start_K = jnp.where(jnp.arange(width) == 0, 0.0, -jnp.inf)
    texts = jnp.zeros((rows, width, room), jnp.int32)
    nothing = jnp.full((rows, width), -jnp.inf)
    beams = Beams(
        step=jnp.zeros((), jnp.int32),
        logprobs_BK=jnp.broadcast_to(start_K[None], (rows, width)),
        tokens_BKT=texts,
        done_B=~live_B,
        finished=Finished(nothing, nothing, texts, jnp.zeros((rows, width), jnp.int32)),
        cache=cache,
    )
    beams = grow(beams, jnp.repeat(logits_BV, width, axis=0), cache)

    def going(beams: Beams):
        return (beams.step < limit) & ~jnp.all(beams.done_B)

    def body(beams: Beams) -> Beams:
        last_BK1 = jax.lax.dynamic_slice_in_dim(beams.tokens_BKT, beams.step - 1, 1, axis=2)
        logits_RV, cache = model.apply(
            {"params": params}, last_BK1.reshape(-1, 1), beams.cache, method="decode_step"
        )
        return grow(beams, logits_RV, cache)

    finished = jax.lax.while_loop(going, body, beams).finished
    return jax.tree.map(lambda x: x[:, : modes["count"]], finished)
