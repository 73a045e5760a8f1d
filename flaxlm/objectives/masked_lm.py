"""Masked language modelling with next-sentence prediction (BERT; Devlin et al., 2019)."""

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from flaxlm.data.order import Plan, Raw, RowRandom
from flaxlm.data.packing import PackedPlan
from flaxlm.data.pairs import PairPlan
from flaxlm.data.pipeline import Batch
from flaxlm.errors import ConfigError, check_range
from flaxlm.models import losses
from flaxlm.objectives.objective import Objective, Spec, Sums, apply, floats, ints, real_rows


@dataclasses.dataclass(frozen=True)
class MaskedLM(Objective):
    """Predict `rate` of the tokens from the rest, drawn afresh in every epoch.

    Of the selected tokens `mask_share` become the mask, `random_share` an ordinary token; the rest
    stay. With `nsp` a row is a sentence pair, and a second head says whether B follows A (label 0)
    or comes from another document (1); without it, rows are packed pieces `[CLS] … [SEP]`. With
    `whole_word` words are selected in random order, each if it fits into the remaining budget.
    """

    nsp: bool = True  # rows are sentence pairs, with next-sentence prediction
    rate: float = 0.15  # share of the tokens to predict
    mask_share: float = 0.8  # of them, those that become the mask
    random_share: float = 0.1  # those that become another token
    whole_word: bool = False  # select words instead of tokens

    name: ClassVar[str] = "masked_lm"
    perplexity_of: ClassVar[str] = "mlm"
    head: ClassVar[str] = "mlm"

    def __post_init__(self):
        super().__post_init__()
        check_range("objective", self, "rate", low=1e-6, high=1)
        check_range("objective", self, "mask_share", "random_share", high=1)
        if self.mask_share + self.random_share > 1 + 1e-9:
            raise ConfigError(
                f"objective.mask_share={self.mask_share} and random_share={self.random_share} "
                "add up to more than 1"
            )

    @property
    def coefficients(self) -> dict[str, float]:
        """Return 1 for each term: BERT adds the two means."""
        return {"mlm": 1.0, "nsp": 1.0} if self.nsp else {"mlm": 1.0}

    def heads(self, model_name: str) -> dict[str, int]:
        """Return the MLM head, and the NSP head of two classes."""
        return super().heads(model_name) | ({"nsp": 2} if self.nsp else {})

    def predictions(self, length: int) -> int:
        """Return P, the most positions a row of this length can have selected."""
        return max(1, math.ceil(self.rate * length - 1e-9))

    def batch_spec(self, batch_size: int, length: int) -> Spec:
        """Return the row's arrays [B, L] and target_positions, targets, weights [B, P]."""
        row, few = (batch_size, length), (batch_size, self.predictions(length))
        spec = ints(tokens=row, segment_ids=row)
        if self.nsp:
            spec |= ints(token_types=row, labels=(batch_size,))
        else:
            spec |= ints(positions=row)
        spec |= ints(target_positions=few, targets=few) | floats(weights=few)
        return spec | ints(example_ids=(batch_size,))

    def plan(self, source, length: int, tokenizer, *, seed: int, shuffle: bool) -> Plan:
        """Return the sentence pairs, or the packed pieces, of a TokenCache."""
        if tokenizer.mask_id < 0:
            raise ConfigError(
                "objective masked_lm replaces tokens by a mask token, and this tokenizer has none; "
                "choose another tokenizer, or objective.name=causal_lm"
            )
        order = {"seed": seed, "shuffle": shuffle}
        if self.nsp:
            special = {"bos_id": tokenizer.bos_id, "eos_id": tokenizer.eos_id}
            return PairPlan(source, length, **order, **special)
        sizes = {"longest": length - 2, "capacity": (length,), "before": 1, "after": 1}
        return PackedPlan(source, cost=lambda n: (n + 2)[:, None], **sizes, **order)

    def preprocess(self, raw: Raw, rng: RowRandom, tokenizer, length: int) -> Batch:
        """Return the batch with the selected tokens replaced in `tokens`, and their originals."""
        batch = raw if self.nsp else _framed(raw, tokenizer, length)
        tokens = batch["tokens"]
        special = special_tokens(tokenizer)
        inside = batch["segment_ids"] > 0  # not by the pad's id, which may be a text's too
        candidates = inside & ~special[tokens]
        real = np.count_nonzero(inside, axis=1)
        budget = np.maximum(np.rint(self.rate * real).astype(np.int64), 1)
        slots = self.predictions(length)
        if self.whole_word:
            starts = np.asarray(tokenizer.word_starts)[tokens]
            chosen = _whole_words(candidates, starts, budget, rng)
        else:
            chosen = _single_tokens(candidates, budget, slots, rng)
        positions, valid = _columns(chosen, slots, length)
        flat = positions + np.arange(len(tokens))[:, None] * tokens.shape[1]
        original = tokens.reshape(-1)[flat]
        ordinary = np.flatnonzero(~special)
        replaced = self._replaced(original, ordinary, tokenizer.mask_id, rng)
        # An unused slot points at the first column and writes back what stands there.
        tokens.reshape(-1)[flat] = np.where(valid, replaced, original)
        return batch | {
            "target_positions": positions,
            "targets": original * valid,
            "weights": valid.astype(np.float32),
        }

    def _replaced(self, original, ordinary, mask_id, rng: RowRandom):
        """Return what stands in place of each selected token, int32 [B, P]."""
        action = rng.uniform("action", original.shape[1])
        other = ordinary[rng.integers("replacement", original.shape[1], len(ordinary))]
        changed = np.where(action < self.mask_share, mask_id, other).astype(original.dtype)
        return np.where(action < self.mask_share + self.random_share, changed, original)

    def weights(self, batch) -> dict[str, jax.Array]:
        """Return the number of selected tokens and of pairs."""
        weights = {"mlm": jnp.sum(batch["weights"])}
        if self.nsp:
            weights["nsp"] = jnp.sum(batch["example_ids"] >= 0, dtype=jnp.float32)
        return weights

    def loss(self, model, params, batch, rng, train: bool) -> tuple[Sums, Sums]:
        """Return terms `mlm` and `nsp` (nats) and the accuracy of each."""
        outputs = apply(model, params, batch, rng, train)
        total, weight, correct = losses.cross_entropy(
            outputs["mlm"], batch["targets"], batch["weights"], *self.penalties(train)
        )
        terms, metrics = {"mlm": (total, weight)}, {"mlm_accuracy": (correct, weight)}
        if self.nsp:
            real_B = real_rows(batch)
            # Both labels are known with certainty: no smoothing.
            total, weight, correct = losses.cross_entropy(outputs["nsp"], batch["labels"], real_B)
            terms["nsp"], metrics["nsp_accuracy"] = (total, weight), (correct, weight)
        return terms, metrics

    def predict(self, model, params, batch) -> dict[str, jax.Array]:
        """Return the best token of each target position [B, P], and log p(label) [B, 2]."""
        outputs = apply(model, params, batch, None, False)
        predictions = {"tokens": jnp.argmax(outputs["mlm"], axis=-1)}
        if self.nsp:
            predictions["nsp"] = jax.nn.log_softmax(outputs["nsp"])
        return predictions


def special_tokens(tokenizer) -> np.ndarray:
    """Return bool [V], True for ids that are no text: never selected, never drawn."""
    special = np.zeros(tokenizer.vocab_size, bool)
    roles = [tokenizer.pad_id, tokenizer.unk_id, tokenizer.bos_id, tokenizer.eos_id]
    special[[*roles, *[tokenizer.mask_id] * (tokenizer.mask_id >= 0)]] = True
    special[np.asarray(tokenizer.sentinel_ids, np.int64)] = True
    return special


def _framed(raw: Raw, tokenizer, length: int) -> Batch:
    """Return packed pieces at full length, [CLS] and [SEP] in the free columns around each."""
    batch = {}
    for name in ("tokens", "segment_ids", "positions"):
        batch[name] = np.zeros((len(raw["tokens"]), length), np.int32)
        batch[name][:, : raw[name].shape[1]] = raw[name]
    rows, rank = np.nonzero(raw["lengths"])
    framed = raw["lengths"] + 2 * (raw["lengths"] > 0)
    end = np.cumsum(framed, axis=1)[rows, rank]
    batch["tokens"][rows, end - framed[rows, rank]] = tokenizer.bos_id
    batch["tokens"][rows, end - 1] = tokenizer.eos_id
    return batch | {"example_ids": raw["example_ids"]}


def _single_tokens(candidates, budget, slots, rng: RowRandom):
    """Return columns [B, slots] of `budget` random candidates a row; −1 in slots left over."""
    length = candidates.shape[1]
    width = int(length - 1).bit_length()
    # The column stands in the low bits of the key, so that the smallest keys name their columns.
    # With 12 of 32 bits taken 20 stay random: two keys tie once in 10⁶.
    keys = rng.bits("select", length)
    if width > 12:
        keys = keys.astype(np.uint64) << np.uint64(width)
    mask = keys.dtype.type((1 << width) - 1)
    keys &= ~mask
    keys |= np.arange(length, dtype=keys.dtype)
    never = np.iinfo(keys.dtype).max
    keys[~candidates] = never
    keys.partition(slots - 1, axis=1)
    keys = np.sort(keys[:, :slots], axis=1)
    chosen = (keys & mask).astype(np.int32)
    chosen[(keys == never) | (np.arange(slots) >= budget[:, None])] = -1
    return chosen


def _whole_words(candidates, starts, budget, rng: RowRandom):
    """Return columns [B, L] of whole words in random order, at most `budget` tokens; −1 elsewhere.

    Words are taken in random order, each if it fits into the remaining budget (BERT's rule). Where
    none fits, the first word gives as many tokens as the budget allows.
    """
    rows, length = candidates.shape
    before = np.zeros_like(candidates)
    before[:, 1:] = candidates[:, :-1]
    starts = candidates & (starts | ~before)
    # A token's key is the random number of its word's first token, then that token's column, then
    # its own: sorting brings words together, in random order.
    first = np.where(starts, np.arange(length, dtype=np.int32), 0)
    first = np.maximum.accumulate(first, axis=1)
    draw = rng.bits("select", length).reshape(-1)
    draw = draw[first + np.arange(rows, dtype=np.int32)[:, None] * np.int32(length)]
    keys = draw.astype(np.uint64)
    keys <<= np.uint64(16)
    keys |= first.astype(np.uint64)
    keys <<= np.uint64(16)
    keys |= np.arange(length, dtype=np.uint64)
    never = np.iinfo(keys.dtype).max
    keys[~candidates] = never
    keys.sort(axis=1)
    columns = (keys & np.uint64(0xFFFF)).astype(np.int32)
    word, real = keys >> np.uint64(16), keys != never
    return np.where(_fitting(word, real, budget), columns, -1)


def _fitting(word, real, budget):
    """Return bool [B, L]: tokens of the words that are taken; a word's tokens stand together."""
    rows, length = word.shape
    begins = np.ones_like(real)
    begins[:, 1:] = word[:, 1:] != word[:, :-1]
    at = np.arange(length, dtype=np.int32)
    # Each token knows the size of its word: the next beginning minus its own.
    begin = np.maximum.accumulate(np.where(begins, at, 0), axis=1)
    after = np.full((rows, length + 1), length, np.int32)
    after[:, :-1] = np.where(begins, at, length)
    after = np.minimum.accumulate(after[:, ::-1], axis=1)[:, ::-1]
    size = np.take_along_axis(after[:, 1:], begin, axis=1) - begin
    taken = np.zeros_like(real)
    left = budget.astype(np.int32)
    open_words = real.copy()
    # Each round takes words up to the first that is too long, and drops those that exceed the
    # remaining budget. Most rows are full after two or three rounds.
    while True:
        open_words &= size <= left[:, None]
        if not open_words.any():
            break
        running = np.cumsum(open_words, axis=1, dtype=np.int32)
        # A word fits if the count at its last token does.
        at_end = np.take_along_axis(running, begin + size - 1, axis=1)
        fits = open_words & (at_end <= left[:, None])
        taken |= fits
        left = left - np.count_nonzero(fits, axis=1).astype(np.int32)
        open_words &= ~fits
    none = ~taken.any(axis=1)
    if none.any():
        taken[none] = real[none] & (at < budget[none][:, None])
    return taken


def _columns(chosen, slots, length):
    """Return (positions int32 [B, slots] ascending, 0 in unused slots; which slots are used)."""
    positions = np.where(chosen < 0, length, chosen).astype(np.int32)
    if positions.shape[1] > slots:
        positions.partition(slots - 1, axis=1)
        positions = positions[:, :slots]
    positions.sort(axis=1)
    if positions.shape[1] < slots:
        unused = slots - positions.shape[1]
        positions = np.pad(positions, ((0, 0), (0, unused)), constant_values=length)
    valid = positions < length
    return positions * valid, valid
