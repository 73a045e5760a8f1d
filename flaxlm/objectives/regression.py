"""One number for a text or a pair: a score, a similarity of two texts read together."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from flaxlm.data.order import ExamplePlan
from flaxlm.errors import DataError
from flaxlm.objectives import supervised
from flaxlm.objectives.objective import Spec, Sums, apply, floats, without
from flaxlm.objectives.sequence import SequenceObjective


@dataclasses.dataclass(frozen=True)
class Regression(SequenceObjective):
    """Predict an example's `score`, with the squared error as the loss.

    The number is the one output of a classification head, as `transformers` has it for
    num_labels=1; it is unbounded.
    """

    name: ClassVar[str] = "regression"
    problem: ClassVar[str] = "regression"

    def __post_init__(self):
        super().__post_init__()
        without(self, "label_smoothing", "z_loss")

    def heads(self, model_name: str) -> dict[str, int]:
        """Return a head of one output."""
        return dict.fromkeys(super().heads(model_name), 1)

    def batch_spec(self, batch_size: int, length: int) -> Spec:
        """Return the row's arrays [B, L] and labels float32 [B]."""
        return self.row_spec(batch_size, length) | floats(labels=(batch_size,))

    def plan(self, source, length: int, tokenizer, *, seed: int, shuffle: bool) -> ExamplePlan:
        """Return the order of examples with `text`, `score` and optionally `text_pair`."""
        scores = np.asarray(supervised.gold(source, "score", float, shuffle), np.float32)
        for number in np.flatnonzero(~np.isfinite(scores)):
            who = supervised.name_of(source, number)
            raise DataError(f"{who}: score {scores[number]} is not a finite number")
        sequences, report = self.row_sequences(*supervised.texts_of(source), length, tokenizer)
        return ExamplePlan(sequences, {"labels": scores}, seed, shuffle, report)

    def loss(self, model, params, batch, rng, train: bool) -> tuple[Sums, Sums]:
        """Return the term `loss`, the squared errors."""
        values_B = self.values(model, params, batch, rng, train)
        real_B = supervised.real_rows(batch)
        errors_B = jnp.square(values_B - batch["labels"]) * real_B
        return {"loss": (jnp.sum(errors_B), jnp.sum(real_B))}, {}

    def predict(self, model, params, batch) -> dict[str, jax.Array]:
        """Return `values` float32 [B]."""
        return {"values": self.values(model, params, batch, None, False)}

    def values(self, model, params, batch, rng, train: bool) -> jax.Array:
        """Return the head's one number, float32 [B]."""
        return apply(model, params, batch, rng, train)["classification"][:, 0].astype(jnp.float32)
