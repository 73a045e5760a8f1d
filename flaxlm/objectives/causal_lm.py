"""Causal and prefix language modelling: predict each token from those before it."""

import dataclasses
from typing import ClassVar

import numpy as np

from flaxlm.data.order import ConcatPlan, Raw, RowRandom
from flaxlm.data.pipeline import Batch
from flaxlm.errors import ConfigError
from flaxlm.models import MODELS, Model
from flaxlm.objectives.objective import Objective, Spec, floats, ints


@dataclasses.dataclass(frozen=True)
class CausalLM(Objective):
    """Next-token prediction on concatenated documents that do not see each other.

    With `prefix`, a prefix of random length of every segment is attended in both directions and
    the loss is on the rest (prefix LM; Raffel et al., 2020, section 3.2.1).
    """

    prefix: bool = False  # a prefix of each segment is read in both directions

    name: ClassVar[str] = "causal_lm"

    @classmethod
    def fits(cls, row: Model) -> bool:
        """Return whether a model goes on from what it has read."""
        return row.writes and super().fits(row)

    @property
    def scores_every_token(self) -> bool:
        """Whether every token but BOS is a target; with `prefix`, prefixes are not."""
        return not self.prefix

    def heads(self, model_name: str) -> dict[str, int]:
        """Return the LM head; ConfigError for a model that has none, or cannot see a prefix."""
        heads = super().heads(model_name)
        if self.prefix and not MODELS[model_name].prefix:
            fit = ", ".join(name for name in self.models() if MODELS[name].prefix)
            raise ConfigError(
                "objective.prefix=True needs attention in both directions, which model.name="
                f"{model_name!r} does not have; it works on: {fit}"
            )
        return heads

    def batch_spec(self, batch_size: int, length: int) -> Spec:
        """Return tokens, targets, weights, segment_ids, positions (prefix_mask) [B, L]."""
        row = (batch_size, length)
        spec = ints(tokens=row, targets=row, segment_ids=row, positions=row)
        if self.prefix:
            spec |= ints(prefix_mask=row)
        return spec | floats(weights=row) | ints(example_ids=(batch_size,))

    def plan(self, source, length: int, tokenizer, *, seed: int, shuffle: bool) -> ConcatPlan:
        """Return the concatenated order of a TokenCache."""
        return ConcatPlan(source, length, seed, shuffle)

    def preprocess(self, raw: Raw, rng: RowRandom, tokenizer, length: int) -> Batch:
        """Return inputs x[:-1] and targets x[1:]; a target in another document has weight 0."""
        segments = raw["segment_ids"]
        scored = segments[:, 1:] == segments[:, :-1]
        scored &= segments[:, 1:] > 0
        inputs = ("tokens", "segment_ids", "positions")
        batch = {name: np.ascontiguousarray(raw[name][:, :-1]) for name in inputs}
        batch["targets"] = np.ascontiguousarray(raw["tokens"][:, 1:])
        batch["example_ids"] = raw["example_ids"]
        if self.prefix:
            position = batch["positions"]
            prefix = _prefix_lengths(batch["segment_ids"], rng)
            batch["prefix_mask"] = (position < prefix).astype(np.int32)
            # The last token of the prefix predicts the first one behind it.
            scored &= position + 1 >= prefix
        batch["weights"] = scored.astype(np.float32)
        return batch


def _prefix_lengths(segments: np.ndarray, rng: RowRandom) -> np.ndarray:
    """Return at each token [B, L] its segment's prefix length, uniform in [1, n − 1]; 0 in padding.

    n counts the segment's inputs in this row; a segment of one token has a prefix of one.
    """
    most = int(segments.max()) + 1
    flat = segments + np.arange(len(segments), dtype=np.int32)[:, None] * np.int32(most)
    tokens = np.bincount(flat.reshape(-1), minlength=len(segments) * most).reshape(-1, most)
    drawn = 1 + rng.integers("prefix", most, np.maximum(tokens - 1, 1))
    drawn[:, 0] = 0
    return drawn.astype(np.int32).reshape(-1)[flat]
