"""Texts from a trained model: continue a prompt, answer it, or fill its `[MASK]`s."""

import dataclasses
import functools
import re
import warnings
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from flaxlm.data.vocabulary import Tokenizer
from flaxlm.errors import ConfigError, DataError
from flaxlm.inference.decoding import batch_rows, decode
from flaxlm.inference.prompts import batches, bucket, check_positions, pad
from flaxlm.inference.settings import GenerateConfig, forced_ids, resolve
from flaxlm.trained import TrainedModel

ALTERNATIVES = 5
BLANK = re.compile(r"\[MASK\]|<extra_id_(\d+)>")


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
    model: TrainedModel,
    prompts: Sequence[str | Sequence[int]],
    options: GenerateConfig,
    progress: Callable[[int], None] = lambda done: None,
) -> list[Generation]:
    """Return the generations of each prompt, prompt by prompt, `num_samples` of each.

    Args:
      model: the trained model.
      prompts: texts, or token ids as the model is to read them, special ones included; for an
        encoder each holds at least one `[MASK]`.
      options: how to choose tokens and when to stop; see `settings.resolve` for what is None.
      progress: see `decoding.decode`.

    Raises:
      ConfigError: the prompt and its new tokens do not fit into the model's positions.
      DataError: a prompt is not one that this family can take.
    """
    options.check_family(model.family)
    options, _ = resolve(options, model)
    with model.reading_text():
        if model.traits.bidirectional:
            return _fill(model, prompts, options, progress)
        write = _respond if model.traits.encodes else _continue
        return write(model, prompts, options, progress)


def cut(text: str, stops: Sequence[str]) -> str:
    """Return the text before the stop string that begins first, all of it where there is none."""
    return min((text.partition(stop)[0] for stop in stops), key=len, default=text)


def _shown(tokenizer, prompt: str | Sequence[int]) -> str:
    return prompt if isinstance(prompt, str) else tokenizer.decode(prompt)


def _continue(model, prompts, options, progress) -> list[Generation]:
    """Return what a decoder writes after each prompt."""
    tokenizer = model.tokenizer
    requests = [_with_bos(model, prompt, options.bos) for prompt in prompts]
    for number, ids in enumerate(requests):
        check_positions(model.config, number, len(ids), options.max_new_tokens)
    generations = []
    for i, ids, logprob, finished in _answers(model, requests, options, progress):
        text = cut(tokenizer.decode_after(requests[i], ids), options.stop)
        prompt = _shown(tokenizer, prompts[i])
        generations.append(Generation(prompt, text, tuple(ids), logprob, finished))
    return generations


def _answers(model, requests, options, progress) -> Iterator[tuple[int, list[int], float, bool]]:
    """Yield (number of its request, new ids, log-probability, whether it ended) of each text."""
    results = decode(model, requests, options, progress)
    _warn_beyond_context(model, requests, results, options.num_samples)
    for number, result in enumerate(results):
        yield number // options.num_samples, *result


def _with_bos(model, prompt: str | Sequence[int], bos: str) -> list[int]:
    """Return the ids of a decoder's prompt; a text begins with BOS where it did in training."""
    if not isinstance(prompt, str):
        if bos != "auto":
            raise ConfigError(f"bos={bos!r}: the prompts of this run are laid out as in training")
        return list(prompt)
    ids = model.tokenizer.encode(prompt)
    added = bos == "always" or (bos == "auto" and (model.trained_here or model.tokenizer.adds_bos))
    return [model.tokenizer.bos_id, *ids] if added or not ids else ids


def _warn_beyond_context(model, requests, results, samples: int) -> None:
    """Warn once of texts longer than those of training, where positions go on beyond them."""
    config, encodes = model.config, model.traits.encodes
    windows = getattr(config, "windows", ())
    if getattr(config, "positions", "learned") == "learned" or (windows and all(windows)):
        return  # they end there, or no layer sees as far
    for number, (ids, *_) in enumerate(results):
        read = len(requests[number // samples])
        length = max(read, len(ids)) if encodes else read + len(ids)
        if 0 < model.context < length:
            warnings.warn(
                f"prompt {number // samples} and its continuation are {length} tokens, and the "
                f"model was trained with {model.context} at once: what it writes beyond is "
                "uncertain",
                stacklevel=3,
            )
            return


def _respond(model, prompts, options, progress) -> list[Generation]:
    """Return what a decoder writes for each prompt that the encoder has read.

    A prompt with blanks (`<extra_id_0>` …, or `[MASK]`, which become the sentinels in order) asks
    for what stood there; the answer names each sentinel before its text.
    """
    tokenizer, blanks, requests = model.tokenizer, [], []
    for number, prompt in enumerate(prompts):
        parts, ids = ([], []), prompt
        if isinstance(prompt, str):
            parts = split_blanks(tokenizer, prompt, number, masks=False)
            ids = [*join_ids(tokenizer, *parts), tokenizer.eos_id]
        requests.append(list(ids))
        blanks.append(parts)
    for number, ids in enumerate(requests):
        check_positions(model.config, number, len(ids))
        check_positions(model.config, number, 1 + len(forced_ids(model)), options.max_new_tokens)
    generations = []
    for i, ids, logprob, finished in _answers(model, requests, options, progress):
        texts, blank_ids = blanks[i]
        text = cut(tokenizer.decode(ids), options.stop)
        if blank_ids:
            answers = spans(tokenizer, ids)
            fills = [cut(answers.get(blank, ""), options.stop) for blank in blank_ids]
            text = "".join(interleave(texts, fills))
        prompt = _shown(tokenizer, prompts[i])
        generations.append(Generation(prompt, text, tuple(ids), logprob, finished))
    return generations


def split_blanks(
    tokenizer: Tokenizer, prompt: str, number: int, *, masks: bool
) -> tuple[list[str], list[int]]:
    """Return (the texts around the blanks of a prompt, the id that stands in each blank).

    `[MASK]` is a blank for an encoder (`masks`); for a model with sentinels `<extra_id_0>` … are,
    and `[MASK]` becomes the next sentinel. Where the vocabulary joins a space to the word after
    it, the space before a blank belongs to the blank, as it did in training.
    """
    blanks = [m for m in BLANK.finditer(prompt) if not masks or m[1] is None]
    sentinels = tokenizer.sentinel_ids
    named = {int(blank[1]) for blank in blanks if blank[1] is not None}
    free = (n for n in range(len(blanks) + len(named)) if n not in named)
    ids: list[int] = []
    texts: list[str] = []
    begin = 0
    for blank in blanks:
        text = prompt[begin : blank.start()]
        texts.append(text.removesuffix(" ") if tokenizer.spaces_join else text)
        begin = blank.end()
        if masks:
            ids.append(tokenizer.mask_id)
            continue
        sentinel = int(blank[1]) if blank[1] is not None else next(free)
        if sentinel >= len(sentinels):
            raise DataError(
                f"prompt {number}: blank {blank[0]} needs sentinel {sentinel}, and the tokenizer "
                f"has {len(sentinels)}; use fewer blanks, or a tokenizer with more sentinels"
            )
        ids.append(int(sentinels[sentinel]))
    if len(set(ids)) < len(ids) and not masks:
        raise DataError(f"prompt {number} uses a sentinel twice; number its blanks apart")
    return [*texts, prompt[begin:]], ids


def interleave(texts: Sequence, fills: Sequence) -> list:
    """Return text, fill, text, fill, …, text as one list."""
    pairs = zip(fills, texts[1:], strict=True)
    return [texts[0], *(part for pair in pairs for part in pair)]


def join_ids(tokenizer: Tokenizer, texts: Sequence[str], blanks: Sequence[int]) -> list[int]:
    """Return the ids of a prompt, each blank in its place."""
    parts = interleave(tokenizer.encode_batch(texts), [[blank] for blank in blanks])
    return [token for part in parts for token in part]


def spans(tokenizer: Tokenizer, ids: Sequence[int]) -> dict[int, str]:
    """Return {sentinel id: the text that follows it} of a span-corruption answer."""
    sentinels = set(tokenizer.sentinel_ids.tolist())
    starts = [place for place, token in enumerate(ids) if token in sentinels]
    ends = [*starts[1:], len(ids)]
    # A sentinel said twice keeps its first text.
    pairs = [(ids[a], tokenizer.decode(ids[a:b])) for a, b in zip(starts, ends, strict=True)]
    return dict(reversed(pairs))


@functools.partial(jax.jit, static_argnames=("module", "count"))
def _most_likely(module, params, batch, silent_11V, *, count):
    """Return (log-probabilities, ids) [B, P, count] of the likeliest tokens that are text."""
    outputs = module.apply({"params": params}, batch)
    if "mlm" not in outputs:
        raise ConfigError(
            "the model has no mlm head to fill [MASK] with; generate from the pre-trained run"
        )
    logits_BPV = outputs["mlm"][..., : silent_11V.shape[-1]]  # rows that the tokenizer has
    logprobs_BPV = jax.nn.log_softmax(logits_BPV.astype(jnp.float32), axis=-1)
    return jax.lax.top_k(jnp.where(silent_11V, -jnp.inf, logprobs_BPV), count)


def _fill(model, prompts, options, progress) -> list[Generation]:
    """Return each prompt with every `[MASK]` replaced by its most likely token.

    All blanks of a prompt are filled at once, each given the others as blanks. Nothing is drawn:
    of the options only `top_k` (alternatives listed) and `batch_size` matter.
    """
    tokenizer = model.tokenizer
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
        check_positions(model.config, number, len(ids))
        requests.append(ids)
        around.append(texts)
    silent = np.zeros((1, 1, tokenizer.vocab_size), bool)
    silent[..., [*tokenizer.special_ids.values(), *tokenizer.sentinel_ids]] = True
    count = min(options.top_k or ALTERNATIVES, int((~silent).sum()))
    size, done = batch_rows(len(requests), options), 0
    results: list = [None] * len(requests)
    for members, length in batches([len(ids) for ids in requests], size):
        progress(done)
        done += len(members)
        rows = [requests[m] for m in members]
        batch = pad(rows, size, length, left=False)
        batch["token_types"] = np.zeros_like(batch["tokens"])
        places = [np.flatnonzero(np.array(row) == tokenizer.mask_id) for row in rows]
        most = bucket(max(len(place) for place in places))
        batch["target_positions"] = np.zeros((size, most), np.int32)
        for row, place in enumerate(places):
            batch["target_positions"][row, : len(place)] = place
        logprobs, tokens = jax.device_get(
            _most_likely(model.module, model.params, batch, jnp.asarray(silent), count=count)
        )
        for row, (member, place) in enumerate(zip(members, places, strict=True)):
            results[member] = logprobs[row, : len(place)], tokens[row, : len(place)]
    progress(done)
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
    words = [[tokenizer.decode([token]) for token in ids] for ids in tokens.tolist()]
    chances = np.exp(logprobs).tolist()
    alternatives = tuple(
        tuple(zip(*blank, strict=True)) for blank in zip(words, chances, strict=True)
    )
    text = "".join(interleave(texts, [blank[0] for blank in words]))
    total = float(logprobs[:, 0].astype(np.float64).sum())
    return Generation(prompt, text, tuple(best), total, True, alternatives)
