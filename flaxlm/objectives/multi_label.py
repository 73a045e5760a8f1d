"""Any number of labels for a text or a pair, each decided independently."""

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
class MultiLabel(SequenceObjective):
    """Say of each of `labels` whether an example has it, by a sigmoid of its own.

    The loss is the cross entropy in nats, averaged over examples and labels, as `transformers` has
    it for multi_label_classification. Label smoothing ε makes targets of ε/2 and 1 − ε/2.

    Attributes:
      labels: their names; an example's `labels` says true or false of each, in this order.
    """

    labels: tuple[str, ...] = ()

    name: ClassVar[str] = "multi_label"
    problem: ClassVar[str] = "multi_label_classification"

    def __post_init__(self):
        super().__post_init__()
        without(self, "z_loss")
        supervised.set_labels(self)

    def batch_spec(self, batch_size: int, length: int) -> Spec:
        """Return the row's arrays [B, L] and labels float32 [B, C], 0 or 1."""
        labels = (batch_size, len(self.labels))
        return self.row_spec(batch_size, length) | floats(labels=labels)

    def plan(self, source, length: int, tokenizer, *, seed: int, shuffle: bool) -> ExamplePlan:
        """Return the order of examples with `text`, `labels` and optionally `text_pair`."""
        rows = supervised.gold(source, "labels", tuple, shuffle)
        labels_NC = np.zeros((len(rows), len(self.labels)), np.float32)
        for number, row in enumerate(rows):
            if row and len(row) != len(self.labels):
                raise DataError(
                    f"{supervised.name_of(source, number)}: {len(row)} truth values for "
                    f"{len(self.labels)} labels ({', '.join(self.labels)})"
                )
            labels_NC[number] = row or 0.0
        if shuffle:
            supervised.warn_absent(labels_NC.sum(axis=0), self.labels, shuffle)
        sequences, report = self.row_sequences(*supervised.texts_of(source), length, tokenizer)
        return ExamplePlan(sequences, {"labels": labels_NC}, seed, shuffle, report)

    def weights(self, batch) -> dict[str, jax.Array]:
        """Return the number of examples times the number of labels."""
        return {"loss": jnp.sum(supervised.real_rows(batch)) * len(self.labels)}

    def loss(self, model, params, batch, rng, train: bool) -> tuple[Sums, Sums]:
        """Return the term `loss`."""
        logits_BC = apply(model, params, batch, rng, train)["classification"].astype(jnp.float32)
        share = self.label_smoothing if train else 0.0
        targets_BC = batch["labels"] * (1.0 - share) + share / 2.0
        # −y log σ(x) − (1 − y) log σ(−x) = log(1 + eˣ) − x y
        nats_BC = jax.nn.softplus(logits_BC) - logits_BC * targets_BC
        total = jnp.sum(nats_BC * supervised.real_rows(batch)[:, None])
        return {"loss": (total, self.weights(batch)["loss"])}, {}

    def predict(self, model, params, batch) -> dict[str, jax.Array]:
        """Return `probabilities` float32 [B, C], each label's own."""
        logits_BC = apply(model, params, batch, None, False)["classification"]
        return {"probabilities": jax.nn.sigmoid(logits_BC.astype(jnp.float32))}
