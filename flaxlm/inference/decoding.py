"""From rows of token ids to what follows them: the host's side of decoding.

`sampling.py` and `beam.py` decode a batch on the device. It holds prompts of one bucket of lengths,
padded to it (16, 32, 64, … tokens), so few shapes are compiled whatever the prompts are.
"""

import bisect
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from flaxlm.inference import beam, sampling
from flaxlm.inference.prompts import batches, pad, padded_lengths
from flaxlm.inference.settings import GenerateConfig, forced_ids
from flaxlm.trained import TrainedModel

# Stop strings are looked for on the host, between runs of this many steps of the device's loop.
STEPS_BETWEEN_STOP_CHECKS = 16

Continuation = tuple[list[int], float, bool]  # ids, log-probability, whether it ended by itself


def decode(
    model: TrainedModel,
    requests: Sequence[Sequence[int]],
    options: GenerateConfig,
    progress: Callable[[int], None] = lambda done: None,
) -> list[Continuation]:
    """Return the continuations of each request, request by request, `num_samples` of each.

    Args:
      model: whose module has `prefill` and `decode_step`.
      requests: token ids of each prompt, special ones included.
      options: complete.
      progress: called with the number of texts that are there, before each batch and at the end;
        it may raise to give the rest up.
    """
    # The texts of a beam search come together, samples one by one.
    together = options.num_samples if options.num_beams > 1 else 1
    each = options.num_samples // together
    jobs = [(i, s) for i in range(len(requests)) for s in range(each)]
    results: list = [None] * len(jobs)
    size, done = batch_rows(len(jobs), options), 0
    for members, length in batches([len(requests[i]) for i, _ in jobs], size):
        progress(done * together)
        rows = [requests[jobs[m][0]] for m in members]
        begun: Sequence[Sequence[int]] = rows  # whose texts go on
        batch = {}
        if model.traits.encodes:
            read = pad(rows, size, length, left=False)
            batch = {f"encoder_{name}": array for name, array in read.items()}
            rows, begun = [[model.tokenizer.start_id, *forced_ids(model)]] * size, [()] * size
            length = len(rows[0])
        length, room, cache_length = padded_lengths(model.config, length, options.max_new_tokens)
        batch |= pad(rows, size, length, left=True)
        sizes = {"room": room, "cache_length": cache_length}
        live = np.arange(size) < len(members)
        if options.num_beams > 1:
            texts = _search_batch(model, batch, live, sizes, options)
        else:
            numbers = np.zeros((2, size), np.int32)
            numbers[:, : len(members)] = np.array([jobs[m] for m in members]).T
            keys = sampling.row_keys(options.seed, jnp.asarray(numbers[0]), jnp.asarray(numbers[1]))
            texts = _decode_batch(model, batch, begun, keys, live, sizes, options)
        for member, continuations in zip(members, texts, strict=True):
            results[member] = continuations
        done += len(members)
    progress(done * together)
    return [continuation for texts in results for continuation in texts]


def batch_rows(count: int, options: GenerateConfig) -> int:
    """Return the rows of every batch of a call: one number, so that a bucket compiles once."""
    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.empty and mesh.size > 1:
        return options.batch_size  # chosen to divide over the mesh, which fewer rows may not
    return min(options.batch_size, 1 << max(0, count - 1).bit_length())


def _search_batch(model: TrainedModel, batch, live, sizes, options) -> list[list[Continuation]]:
    """Return the best texts of each live row, best first."""
    limit, alpha = jnp.int32(options.max_new_tokens), jnp.float32(options.length_penalty)
    finished = beam.search(
        *(model.module, model.params, batch, jnp.asarray(live), limit, alpha),
        vocab_size=model.tokenizer.vocab_size,
        eos_ids=model.eos_ids,
        width=options.num_beams,
        count=options.num_samples,
        **sizes,
    )
    finished = jax.device_get(finished)

    def ending(row: int, rank: int) -> Continuation:
        ids = finished.tokens_BKT[row, rank, : finished.lengths_BK[row, rank]].tolist()
        ended = ids[-1] in model.eos_ids
        return ids[: len(ids) - ended], float(finished.logprobs_BK[row, rank]), ended

    ranks = range(options.num_samples)
    return [[ending(row, rank) for rank in ranks] for row in np.flatnonzero(live)]


def _decode_batch(
    model: TrainedModel, batch, begun, keys, live, sizes, options
) -> list[list[Continuation]]:
    """Return one sample of each live row; `begun` holds the ids whose texts they continue."""
    module, params = model.module, model.params
    greedy = options.temperature == 0
    modes = {
        "vocab_size": model.tokenizer.vocab_size,
        "eos_ids": model.eos_ids,
        "greedy": greedy,
        "cut": not greedy and (options.top_k > 0 or options.top_p < 1),
    }
    temperature, top_p = jnp.float32(options.temperature or 1.0), jnp.float32(options.top_p)
    settings = sampling.Settings(temperature, jnp.int32(options.top_k), top_p)
    live_B = jnp.asarray(live)
    decoding = sampling.start(module, params, batch, keys, live_B, settings, **sizes, **modes)
    stride = STEPS_BETWEEN_STOP_CHECKS if options.stop else options.max_new_tokens
    until = 1
    while True:
        until = min(until + stride, options.max_new_tokens)
        if until > 1:
            upto = jnp.int32(until)
            decoding = sampling.advance(module, params, decoding, upto, settings, **modes)
        tokens, logprobs, step, done = jax.device_get(
            (decoding.tokens_BT, decoding.logprobs_BT, decoding.step, decoding.done_B)
        )
        continuations = [
            _ending(model, begun[row], tokens[row, :step].tolist(), logprobs[row], options.stop)
            for row in np.flatnonzero(live)
        ]
        ended = done.copy()
        ended[: len(continuations)] |= [finished for _, _, finished in continuations]
        if ended.all() or until == options.max_new_tokens:
            return [[continuation] for continuation in continuations]
        decoding = decoding._replace(done_B=jnp.asarray(ended))


def _ending(model, begun, ids: list[int], logprobs: np.ndarray, stops) -> Continuation:
    """Return one row, cut at EOS or where the first stop string is complete."""
    count, finished = len(ids), False
    end = next((place for place, token in enumerate(ids) if token in model.eos_ids), None)
    if end is not None:
        ids, count, finished = ids[:end], end + 1, True

    def stopped(count: int) -> bool:
        text = model.tokenizer.decode_after(begun, ids[:count])
        return any(stop in text for stop in stops)

    if stops and stopped(len(ids)):
        # Text only grows with tokens: the fewest that complete a stop string are found by halves.
        count, finished = bisect.bisect_left(range(len(ids)), True, key=stopped), True
        ids = ids[:count]
    return ids, float(logprobs[:count].astype(np.float64).sum()), finished
