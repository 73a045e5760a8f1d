"""Texts from a trained model: continue a prompt, answer it, or fill its `[MASK]`s.

`prompts.py` makes rows of prompts, `sampling.py` decodes a batch of them on the device. A batch
holds prompts of one bucket of lengths, padded to it (16, 32, 64, … tokens), so few shapes are
compiled whatever the prompts are.
"""

import bisect
import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from flaxlm import sampling
from flaxlm.data.tokenizer import Tokenizer
from flaxlm.errors import ConfigError, DataError, choose
from flaxlm.prompts import (
    batches,
    bucket,
    check_positions,
    interleave,
    join_ids,
    pad,
    shapes,
    spans,
    split_blanks,
)

# Stop strings are looked for on the host, between runs of this many steps of the device's loop.
STEPS_BETWEEN_STOP_CHECKS = 16
ALTERNATIVES = 5


@dataclasses.dataclass(frozen=True)
class GenerateConfig:
    """How to choose tokens and when to stop.

    Attributes:
      max_new_tokens: most tokens generated for a prompt.
      temperature: divides the logits; 0 takes the most likely token.
      top_k: keep the k most likely tokens; 0 keeps all. An encoder lists so many alternatives
        (5 at 0).
      top_p: keep the smallest set of tokens that holds this much probability.
      seed: with (prompt index, sample index) it decides every sample.
      stop: strings that end a text; the text is cut before the first of them.
      num_samples: texts for each prompt.
      batch_size: prompts decoded together; it has to divide over a mesh, where there is one.
    """

    max_new_tokens: int = 128
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    num_samples: int = 1
    batch_size: int = 16

    def __post_init__(self):
        for name in ("max_new_tokens", "num_samples", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 1")
        if not 0 <= self.temperature < float("inf"):
            raise ConfigError(f"temperature={self.temperature} must be 0 (greedy) or more")
        if self.top_k < 0:
            raise ConfigError(f"top_k={self.top_k} must be 0 (off) or more")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p={self.top_p} must be above 0 and at most 1 (off)")
        if isinstance(self.stop, str) or not all(self.stop):
            raise ConfigError(f"stop={self.stop!r} must be a tuple of strings, none empty")


@dataclasses.dataclass(frozen=True)
class Generation:
    """What came of one prompt.

    Attributes:
      prompt: as it was given.
      text: the new text alone; where the prompt had blanks, the prompt with its blanks filled.
      ids: the new tokens up to EOS (left out) or up to the token that completes a stop string.
      logprob: Σ log p of those tokens, and of EOS, under the model before temperature and cuts
        (nats).
      finished: ended by EOS or by a stop string rather than by `max_new_tokens`.
      alternatives: an encoder's most likely (text, probability) for each blank.
    """

    prompt: str
    text: str
    ids: tuple[int, ...]
    logprob: float
    finished: bool
    alternatives: tuple[tuple[tuple[str, float], ...], ...] = ()


def generate(
    model,
    params,
    tokenizer: Tokenizer,
    prompts: Sequence[str | Sequence[int]],
    options: GenerateConfig,
    family: str,
) -> list[Generation]:
    """Return the generations of each prompt, prompt by prompt, `num_samples` of each.

    Args:
      model: the Linen module.
      params: its parameters.
      tokenizer: the tokenizer that the model was trained with.
      prompts: texts, or token ids as the model is to read them, special ones included; for an
        encoder each holds at least one `[MASK]`.
      options: how to choose tokens and when to stop.
      family: the model's key in `MODELS`.

    Raises:
      ConfigError: the prompt and its new tokens do not fit into the model's positions.
      DataError: a prompt is not one that this family can take.
    """
    return FAMILIES[choose("family", family, FAMILIES)](model, params, tokenizer, prompts, options)


def decode(
    model,
    params,
    tokenizer: Tokenizer,
    requests: Sequence[Sequence[int]],
    options: GenerateConfig,
    *,
    encoder: bool,
) -> list[tuple[list[int], float, bool]]:
    """Return (ids, log-probability, finished) for each request and sample, request by request.

    Args:
      model: a Linen module with `prefill` and `decode_step`.
      params: its parameters.
      tokenizer: for EOS and the decoder's first token, and to look for stop strings.
      requests: token ids of each prompt, special ones included.
      options: how to choose tokens and when to stop.
      encoder: whether the requests go to an encoder, with the decoder starting from nothing.
    """
    jobs = [(i, s) for i in range(len(requests)) for s in range(options.num_samples)]
    results: list = [None] * len(jobs)
    size = _rows(len(jobs), options)
    for members, length in batches([len(requests[i]) for i, _ in jobs], size):
        rows = [requests[jobs[m][0]] for m in members]
        if encoder:
            read = pad(rows, size, length, left=False)
            batch = {f"encoder_{name}": array for name, array in read.items()}
            rows, length = [[tokenizer.start_id]] * size, 1
        else:
            batch = {}
        length, room, cache_length = shapes(model, length, options.max_new_tokens)
        batch |= pad(rows, size, length, left=True)
        sizes = {"room": room, "cache_length": cache_length}
        numbers = np.zeros((2, size), np.int32)
        numbers[:, : len(members)] = np.array([jobs[m] for m in members]).T
        keys = sampling.row_keys(options.seed, jnp.asarray(numbers[0]), jnp.asarray(numbers[1]))
        live = np.arange(size) < len(members)
        found = _decode_batch(model, params, tokenizer, batch, keys, live, sizes, options)
        for row, member in enumerate(members):
            results[member] = found[row]
    return results


def _rows(count: int, options: GenerateConfig) -> int:
    """Return the rows of every batch of a call: one number, so that a bucket compiles once."""
    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.empty and mesh.size > 1:
        return options.batch_size  # chosen to divide over the mesh, which fewer rows may not
    return min(options.batch_size, 1 << max(0, count - 1).bit_length())


def _decode_batch(model, params, tokenizer, batch, keys, live, sizes, options):
    """Return (ids, log-probability, finished) of each live row."""
    greedy = options.temperature == 0
    modes = {
        "vocab_size": tokenizer.vocab_size,
        "eos_id": tokenizer.eos_id,
        "greedy": greedy,
        "cut": not greedy and (options.top_k > 0 or options.top_p < 1),
    }
    settings = sampling.Settings(
        jnp.float32(options.temperature or 1.0),
        jnp.int32(options.top_k),
        jnp.float32(options.top_p),
    )
    decoding = sampling.start(
        model, params, batch, keys, jnp.asarray(live), settings, **sizes, **modes
    )
    stride = STEPS_BETWEEN_STOP_CHECKS if options.stop else options.max_new_tokens
    until = 1
    while True:
        until = min(until + stride, options.max_new_tokens)
        if until > 1:
            decoding = sampling.advance(
                model, params, decoding, jnp.int32(until), settings, **modes
            )
        tokens, logprobs, step, done = jax.device_get(
            (decoding.tokens_BT, decoding.logprobs_BT, decoding.step, decoding.done_B)
        )
        found = [
            _ending(tokenizer, tokens[row, :step].tolist(), logprobs[row, :step], options.stop)
            for row in np.flatnonzero(live)
        ]
        ended = done.copy()
        ended[: len(found)] |= [finished for _, _, finished in found]
        if ended.all() or until == options.max_new_tokens:
            return found
        decoding = decoding._replace(done_B=jnp.asarray(ended))


def _ending(tokenizer, ids: list[int], logprobs: np.ndarray, stops) -> tuple:
    """Return (ids, log-probability, finished) of one row, cut at EOS or a stop string."""
    count, finished = len(ids), False
    if tokenizer.eos_id in ids:
        finished = True
        ids = ids[: ids.index(tokenizer.eos_id)]
        count = len(ids) + 1
    needed = _tokens_to_stop(tokenizer, ids, stops)
    if needed is not None:
        ids, count, finished = ids[:needed], needed, True
    return ids, float(logprobs[:count].astype(np.float64).sum()), finished


def _tokens_to_stop(tokenizer, ids: list[int], stops) -> int | None:
    """Return how many tokens it takes to complete the first stop string, None if there is none."""

    def stopped(count: int) -> bool:
        text = tokenizer.decode(ids[:count])
        return any(stop in text for stop in stops)

    if not stops or not stopped(len(ids)):
        return None
    # Text only grows with tokens, so the first count that holds a stop string is found by halves.
    return bisect.bisect_left(range(len(ids)), True, key=stopped)


def cut(text: str, stops: Sequence[str]) -> str:
    """Return the text before the stop string that begins first, all of it where there is none."""
    places = [text.find(stop) for stop in stops]
    return text[: min((place for place in places if place >= 0), default=len(text))]


def _shown(tokenizer, prompt: str | Sequence[int]) -> str:
    return prompt if isinstance(prompt, str) else tokenizer.decode(prompt)


def _continue(model, params, tokenizer, prompts, options) -> list[Generation]:
    """Return what a decoder writes after each prompt; a document begins with BOS."""
    requests = [
        [tokenizer.bos_id, *tokenizer.encode(prompt)] if isinstance(prompt, str) else list(prompt)
        for prompt in prompts
    ]
    for number, ids in enumerate(requests):
        check_positions(model, number, len(ids), options.max_new_tokens)
    results = decode(model, params, tokenizer, requests, options, encoder=False)
    owners = np.repeat(np.arange(len(prompts)), options.num_samples)
    return [
        Generation(
            _shown(tokenizer, prompts[i]),
            cut(tokenizer.decode(ids), options.stop),
            tuple(ids),
            *rest,
        )
        for i, (ids, *rest) in zip(owners, results, strict=True)
    ]


def _respond(model, params, tokenizer, prompts, options) -> list[Generation]:
    """Return what a decoder writes for each prompt that the encoder has read.

    A prompt with blanks (`<extra_id_0>` …, or `[MASK]`, which become the sentinels in order) asks
    for what stood there; the answer names each sentinel before its text.
    """
    blanks, requests = [], []
    for number, prompt in enumerate(prompts):
        if isinstance(prompt, str):
            parts = split_blanks(tokenizer, prompt, number, masks=False)
            requests.append([*join_ids(tokenizer, *parts), tokenizer.eos_id])
        else:
            parts = [], []
            requests.append(list(prompt))
        blanks.append(parts)
    for number, ids in enumerate(requests):
        check_positions(model, number, len(ids))
        check_positions(model, number, 1, options.max_new_tokens)
    results = decode(model, params, tokenizer, requests, options, encoder=True)
    owners = np.repeat(np.arange(len(prompts)), options.num_samples)
    generations = []
    for i, (ids, *rest) in zip(owners, results, strict=True):
        texts, blank_ids = blanks[i]
        text = cut(tokenizer.decode(ids), options.stop)
        if blank_ids:
            answers = spans(tokenizer, ids)
            fills = [cut(answers.get(blank, ""), options.stop) for blank in blank_ids]
            text = "".join(interleave(texts, fills))
        generations.append(Generation(_shown(tokenizer, prompts[i]), text, tuple(ids), *rest))
    return generations


@functools.partial(jax.jit, static_argnames=("model", "count"))
def _most_likely(model, params, batch, silent_11V, *, count):
    """Return (log-probabilities, ids) [B, P, count] of the likeliest tokens that are text."""
    outputs = model.apply({"params": params}, batch)
    if "mlm" not in outputs:
        raise ConfigError(
            "the model has no mlm head to fill [MASK] with; generate from the pre-trained run"
        )
    logits_BPV = outputs["mlm"][..., : silent_11V.shape[-1]]  # rows that the tokenizer has
    logprobs_BPV = jax.nn.log_softmax(logits_BPV.astype(jnp.float32), axis=-1)
    return jax.lax.top_k(jnp.where(silent_11V, -jnp.inf, logprobs_BPV), count)


def _fill(model, params, tokenizer, prompts, options) -> list[Generation]:
    """Return each prompt with every `[MASK]` replaced by its most likely token.

    All blanks of a prompt are filled at once, each given the others as blanks. Nothing is drawn:
    of the options only `top_k` (alternatives listed) and `batch_size` matter.
    """
    if tokenizer.mask_id < 0:
        raise ConfigError("an encoder fills masks, and this tokenizer has no mask")
    requests, around = [], []
    for number, prompt in enumerate(prompts):
        if isinstance(prompt, str):
            texts, blanks = split_blanks(tokenizer, prompt, number, masks=True)
            ids = [tokenizer.cls_id, *join_ids(tokenizer, texts, blanks), tokenizer.sep_id]
        else:
            ids = list(prompt)
            texts = _texts_around(tokenizer, ids)
        if len(texts) < 2:
            raise DataError(f"prompt {number} holds no [MASK], and an encoder has nothing to fill")
        check_positions(model, number, len(ids))
        requests.append(ids)
        around.append(texts)
    silent = np.zeros((1, 1, tokenizer.vocab_size), bool)
    silent[..., [*tokenizer.special_ids.values(), *tokenizer.sentinel_ids]] = True
    count = min(options.top_k or ALTERNATIVES, int((~silent).sum()))
    size = _rows(len(requests), options)
    results: list = [None] * len(requests)
    for members, length in batches([len(ids) for ids in requests], size):
        rows = [requests[m] for m in members]
        batch = pad(rows, size, length, left=False)
        batch["token_types"] = np.zeros_like(batch["tokens"])
        places = [np.flatnonzero(np.array(row) == tokenizer.mask_id) for row in rows]
        most = bucket(max(len(place) for place in places))
        batch["target_positions"] = np.zeros((size, most), np.int32)
        for row, place in enumerate(places):
            batch["target_positions"][row, : len(place)] = place
        logprobs, tokens = jax.device_get(
            _most_likely(model, params, batch, jnp.asarray(silent), count=count)
        )
        for row, (member, place) in enumerate(zip(members, places, strict=True)):
            results[member] = logprobs[row, : len(place)], tokens[row, : len(place)]
    return [
        _filled(tokenizer, _shown(tokenizer, prompt), texts, *result)
        for prompt, texts, result in zip(prompts, around, results, strict=True)
    ]


def _texts_around(tokenizer, ids: list[int]) -> list[str]:
    """Return the texts before, between and behind the masks of a row of ids."""
    places = [i for i, token in enumerate(ids) if token == tokenizer.mask_id]
    borders = zip([-1, *places], [*places, len(ids)], strict=True)
    return [tokenizer.decode(ids[begin + 1 : end]) for begin, end in borders]


def _filled(tokenizer, prompt: str, texts, logprobs, tokens) -> Generation:
    """Return the generation of one prompt from its blanks' likeliest tokens [P, count]."""
    best = tokens[:, 0].tolist()
    alternatives = tuple(
        tuple(
            (tokenizer.decode([token]), float(np.exp(p))) for token, p in zip(ids, ps, strict=True)
        )
        for ids, ps in zip(tokens.tolist(), logprobs, strict=True)
    )
    text = "".join(interleave(texts, [tokenizer.decode([token]) for token in best]))
    total = float(logprobs[:, 0].astype(np.float64).sum())
    return Generation(prompt, text, tuple(best), total, True, alternatives)


FAMILIES = {
    "decoder": _continue,
    "recurrent": _continue,
    "encoder_decoder": _respond,
    "encoder": _fill,
}
