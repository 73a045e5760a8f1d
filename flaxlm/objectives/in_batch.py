"""Vectors whose cosines say how similar texts are; the other pairs of a batch are negatives.

Henderson et al. (2017), section 4; with cosines, Reimers & Gurevych (2019).
Dimension key: B pairs, S = 2 texts of a pair, R = 2 B rows, L length, D width, C candidates (= B).
"""

import dataclasses
import warnings
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from flaxlm.data.order import ExamplePlan, Raw, RowRandom
from flaxlm.data.pipeline import Batch
from flaxlm.data.sentence_modules import read_modules
from flaxlm.errors import ConfigError, choose
from flaxlm.models import losses
from flaxlm.models.heads import POOLINGS, pool
from flaxlm.objectives import supervised
from flaxlm.objectives.objective import Spec, Sums, apply, ints, real_rows
from flaxlm.objectives.sequence import SequenceObjective

SIDES = ("first", "second")


@dataclasses.dataclass(frozen=True)
class InBatch(SequenceObjective):
    """Find the second text of a pair among those of the whole batch, and the first likewise.

    One encoder makes a vector of each text. On a mesh the candidates are those of the global batch.
    The loss depends on the batch size, in evaluation too: compare runs by what the task measures.
    """

    temperature: float = 0.05  # what cosines are divided by before the softmax
    pooling: str = "mean"  # a text's vector: of its real tokens the mean, the first (cls), the last

    name: ClassVar[str] = "in_batch"
    decomposes: ClassVar[bool] = False

    def __post_init__(self):
        super().__post_init__()
        choose("objective.pooling", self.pooling, POOLINGS)
        if self.temperature <= 0:
            raise ConfigError(f"objective.temperature={self.temperature} must be above 0")

    def heads(self, model_name: str) -> dict[str, int]:
        """Return no head: a text's vector is made of its final states."""
        super().heads(model_name)
        return {}

    def batch_spec(self, batch_size: int, length: int) -> Spec:
        """Return the arrays of both texts [B, 2, L], and labels [B]: 1 for a pair that belongs."""
        rows = dict.fromkeys(self.row_names, (batch_size, 2, length))
        return ints(**rows, example_ids=(batch_size,), labels=(batch_size,))

    def plan(self, source, length: int, tokenizer, *, seed: int, shuffle: bool) -> ExamplePlan:
        """Return the order of examples with `text`, `text_pair` and `label`, 0 or 1.

        A pair of label 0 is a candidate for the others and has no loss of its own.
        """
        modules = read_modules(tokenizer.beside)
        if modules.pooling not in ("", self.pooling):
            warnings.warn(
                f"objective.pooling={self.pooling!r}, and {modules.where['pooling']} of the model "
                f"says {modules.pooling!r}: --config.objective.pooling={modules.pooling} keeps it",
                stacklevel=2,
            )
        labels = np.asarray(supervised.gold(source, "label", int, shuffle), np.int32)
        sequences, report = {}, {"examples": len(labels), "truncated": 0}
        for side, texts in zip(SIDES, supervised.texts_of(source), strict=True):
            rows, counts = self.row_sequences(texts, [""] * len(texts), length, tokenizer)
            sequences |= {f"{side}_{name}": sequence for name, sequence in rows.items()}
            report["truncated"] += counts["truncated"]
        return ExamplePlan(sequences, {"labels": labels}, seed, shuffle, report)

    def preprocess(self, raw: Raw, rng: RowRandom, tokenizer, length: int) -> Batch:
        """Return the batch; nothing in it is random."""
        pair = {name: raw[name] for name in ("example_ids", "labels")}
        sides = []
        for side in SIDES:
            start = f"{side}_"
            text = {k.removeprefix(start): v for k, v in raw.items() if k.startswith(start)}
            sides.append(self.row_batch(text | pair, length))
        return {n: np.stack([side[n] for side in sides], axis=1) for n in self.row_names} | pair

    def model_inputs(self, batch) -> Batch:
        """Return the texts of all pairs one below the other, [2 B, L]."""
        names = ("tokens", "segment_ids", "token_types")
        return {n: batch[n].reshape(-1, batch[n].shape[-1]) for n in names if n in batch}

    def weights(self, batch) -> dict[str, jax.Array]:
        """Return the number of pairs that belong together."""
        return {"loss": jnp.sum(real_rows(batch) * batch["labels"])}

    def loss(self, model, params, batch, rng, train: bool) -> tuple[Sums, Sums]:
        """Return the term `loss` and the accuracy, means of both directions."""
        x_BSD = self.vectors(model, params, batch, rng, train)
        logits_BC = jnp.einsum("bd,cd->bc", x_BSD[:, 0], x_BSD[:, 1]) / self.temperature
        real_B = real_rows(batch)
        weights_B = real_B * batch["labels"]
        # A row that only fills the batch is no candidate but its own, and has no weight there.
        absent_BC = (real_B[None, :] == 0) & (real_B[:, None] != 0)
        own_B = jnp.arange(len(real_B))
        both = [
            losses.cross_entropy(
                jnp.where(absent_BC, -jnp.inf, logits), own_B, weights_B, *self.penalties(train)
            )
            for logits in (logits_BC, logits_BC.T)
        ]
        total, weight, correct = (sum(values) / 2 for values in zip(*both, strict=True))
        return {"loss": (total, weight)}, {"accuracy": (correct, weight)}

    def predict(self, model, params, batch) -> dict[str, jax.Array]:
        """Return `values` float32 [B], the cosine of each pair."""
        x_BSD = self.vectors(model, params, batch, None, False)
        return {"values": jnp.sum(x_BSD[:, 0] * x_BSD[:, 1], axis=-1)}

    def vectors(self, model, params, batch, rng, train: bool) -> jax.Array:
        """Return the vectors of both texts, of length 1, float32 [B, 2, D]."""
        inputs = self.model_inputs(batch)
        x_RLD = apply(model, params, inputs, rng, train)["hidden"]
        x_RD = pool(x_RLD, inputs["segment_ids"], POOLINGS[self.pooling]).astype(jnp.float32)
        # The maximum is inside the root, whose slope at 0 is infinite.
        squares_R1 = jnp.sum(jnp.square(x_RD), axis=-1, keepdims=True)
        x_RD = x_RD / jnp.sqrt(jnp.maximum(squares_R1, 1e-24))
        return x_RD.reshape(-1, len(SIDES), x_RD.shape[-1])
