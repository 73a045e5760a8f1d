"""From rows of token ids to what follows them: the host's side of decoding.

`prompts.py` makes rows of prompts, `sampling.py` and `beam.py` decode a batch of them on the
device. A batch holds prompts of one bucket of lengths, padded to it (16, 32, 64, … tokens), so few
shapes are compiled whatever the prompts are.
"""

import bisect
import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from flaxlm.errors import ConfigError
from flaxlm.inference import beam, sampling
from flaxlm.inference.prompts import batches, pad, shapes
from flaxlm.trained import TrainedModel

# Stop strings are looked for on the host, between runs of this many steps of the device's loop.
STEPS_BETWEEN_STOP_CHECKS = 16

Continuation = tuple[list[int], float, bool]  # ids, log-probability, whether it ended by itself


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
      num_samples: texts for each prompt; of a beam search the best ones.
      batch_size: prompts decoded together; it has to divide over a mesh, where there is one.
      num_beams: above 1, search for the likeliest texts with so many beams; nothing is drawn.
      length_penalty: α of a beam search: texts of n tokens are compared by log p / ((5 + n) / 6)^α
        (Wu et al., 2016, equation 14); 0 prefers short ones.
    """

    max_new_tokens: int = 128
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    num_samples: int = 1
    batch_size: int = 16
    num_beams: int = 1
    length_penalty: float = 0.6

    def __post_init__(self):
        for name in ("max_new_tokens", "num_samples", "batch_size", "num_beams"):
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
        if not 0 <= self.length_penalty < float("inf"):
            raise ConfigError(f"length_penalty={self.length_penalty} must be 0 (off) or more")
        if self.num_beams > 1:
            self._check_beams()

    def _check_beams(self) -> None:
        """Refuse beside beams what only makes sense where tokens are drawn one after the other."""
        drawn = {
            "temperature": self.temperature not in (0.0, 1.0),
            "top_k": self.top_k > 0,
            "top_p": self.top_p < 1,
            "stop": bool(self.stop),
        }
        for name, given in drawn.items():
            if given:
                raise ConfigError(
                    f"{name}={getattr(self, name)!r} has no meaning with num_beams="
                    f"{self.num_beams}, which searches for the likeliest whole texts; drop one"
                )
        if self.num_samples > self.num_beams:
            raise ConfigError(
                f"num_samples={self.num_samples} must be at most num_beams={self.num_beams}: a "
                "beam search ends with as many texts as it has beams"
            )


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
      options: how to choose tokens and when to stop.
      progress: called with the number of texts that are there, before each batch and at the end;
        it may raise to give the rest up.
    """
    # The texts of a beam search come together, samples one by one.
    together = options.num_samples if options.num_beams > 1 else 1
    each = options.num_samples // together
    jobs = [(i, s) for i in range(len(requests)) for s in range(each)]
    results: list = [None] * len(jobs)
    size = batch_rows(len(jobs), options)
    done = 0
    for members, length in batches([len(requests[i]) for i, _ in jobs], size):
        progress(done * together)
        rows = [requests[jobs[m][0]] for m in members]
        if model.traits.encodes:
            read = pad(rows, size, length, left=False)
            batch = {f"encoder_{name}": array for name, array in read.items()}
            rows, length = [[model.tokenizer.start_id]] * size, 1
        else:
            batch = {}
        length, room, cache_length = shapes(model.config, length, options.max_new_tokens)
        batch |= pad(rows, size, length, left=True)
        sizes = {"room": room, "cache_length": cache_length}
        live = np.arange(size) < len(members)
        if options.num_beams > 1:
            found = _search_batch(model, batch, live, sizes, options)
        else:
            numbers = np.zeros((2, size), np.int32)
            numbers[:, : len(members)] = np.array([jobs[m] for m in members]).T
            keys = sampling.row_keys(options.seed, jnp.asarray(numbers[0]), jnp.asarray(numbers[1]))
            found = _decode_batch(model, batch, keys, live, sizes, options)
        for row, member in enumerate(members):
            results[member] = found[row]
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
    tokenizer = model.tokenizer
    found = beam.search(
        model.module,
        model.params,
        batch,
        jnp.asarray(live),
        jnp.int32(options.max_new_tokens),
        jnp.float32(options.length_penalty),
        vocab_size=tokenizer.vocab_size,
        eos_id=tokenizer.eos_id,
        width=options.num_beams,
        count=options.num_samples,
        **sizes,
    )
    found = jax.device_get(found)

    def ending(row: int, rank: int) -> Continuation:
        ids = found.tokens_BKT[row, rank, : found.lengths_BK[row, rank]].tolist()
        ended = ids[-1:] == [tokenizer.eos_id]
        return ids[: len(ids) - ended], float(found.logprobs_BK[row, rank]), ended

    return [
        [ending(row, rank) for rank in range(options.num_samples)] for row in np.flatnonzero(live)
    ]


def _decode_batch(
    model: TrainedModel, batch, keys, live, sizes, options
) -> list[list[Continuation]]:
    """Return one sample of each live row."""
    module, params, tokenizer = model.module, model.params, model.tokenizer
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
        module, params, batch, keys, jnp.asarray(live), settings, **sizes, **modes
    )
    stride = STEPS_BETWEEN_STOP_CHECKS if options.stop else options.max_new_tokens
    until = 1
    while True:
        until = min(until + stride, options.max_new_tokens)
        if until > 1:
            decoding = sampling.advance(
                module, params, decoding, jnp.int32(until), settings, **modes
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
            return [[continuation] for continuation in found]
        decoding = decoding._replace(done_B=jnp.asarray(ended))


def _ending(tokenizer, ids: list[int], logprobs: np.ndarray, stops) -> Continuation:
    """Return one row, cut at EOS or a stop string."""
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
