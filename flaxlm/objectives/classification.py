"""Sequence classification of one text or a pair, on every family."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from flaxlm.data.order import ExamplePlan, Raw, RowRandom
from flaxlm.data.pipeline import Batch
from flaxlm.errors import DataError
from flaxlm.models import losses
from flaxlm.objectives import supervised
from flaxlm.objectives.objective import Spec, Sums, apply, floats, ints
from flaxlm.objectives.sequence import (
    SequenceObjective,
    real_rows,
    set_class_weights,
    set_labels,
    texts_of,
)


@dataclasses.dataclass(frozen=True)
class Classification(SequenceObjective):
    """Choose one of `labels` for each example.

    An encoder-decoder learns to write the label; its prediction is the label whose text it finds
    most likely.

    Attributes:
      labels: the names of the classes; an example's `label` is an index into them.
      target_length: decoder columns of an encoder-decoder; 0 for what the longest label can need
        in any tokenizer, its bytes and two more.
      class_weights: what an example of each label counts in the training loss, which is
        Σ w · loss / Σ w over the batch; empty: all the same. The loss of an evaluation has none.
    """

    labels: tuple[str, ...] = ()
    target_length: int = 0
    class_weights: tuple[float, ...] = ()

    name: ClassVar[str] = "classification"
    models: ClassVar[dict] = {"encoder": {}, "decoder": {}, "recurrent": {}, "encoder_decoder": {}}

    def __post_init__(self):
        super().__post_init__()
        set_labels(self)
        set_class_weights(self)

    def heads(self, model_name: str) -> dict[str, int]:
        """Return a head of C classes, or the LM head of an encoder-decoder."""
        super().heads(model_name)
        if model_name == "encoder_decoder":
            return {"lm": 0}
        return {"classification": len(self.labels)}

    def decoder_length(self) -> int:
        """Return the decoder columns that labels as text take."""
        return self.target_length or max(len(label.encode()) for label in self.labels) + 2

    def batch_spec(self, batch_size: int, length: int) -> Spec:
        """Return the row's arrays [B, L] and labels [B]; as text, label_tokens [B, C, T] too."""
        spec = self.row_spec(batch_size, length) | ints(labels=(batch_size,))
        if self.model != "encoder_decoder":
            return spec
        few = (batch_size, self.decoder_length())
        spec |= ints(tokens=few, targets=few, segment_ids=few) | floats(weights=few)
        classes = (batch_size, len(self.labels))
        return spec | ints(label_tokens=(*classes, few[1]), label_lengths=classes)

    def plan(self, source, length: int, tokenizer, *, seed: int, shuffle: bool) -> ExamplePlan:
        """Return the order of examples with `text`, `label` and optionally `text_pair`."""
        labels = np.asarray(supervised.gold(source, "label", int, shuffle), np.int32)
        bad = np.flatnonzero((labels < 0) | (labels >= len(self.labels)))
        if len(bad):
            raise DataError(
                f"example {source[int(bad[0])].get('id', bad[0])}: label {labels[bad[0]]} is not "
                f"in 0 … {len(self.labels) - 1} ({', '.join(self.labels)})"
            )
        if shuffle or any(example.get("label") is not None for example in source):
            counts = np.bincount(labels, minlength=len(self.labels))
            supervised.warn_absent(counts, self.labels, shuffle)
        sequences, report = self.row_sequences(*texts_of(source), length, tokenizer)
        columns = {"labels": labels}
        if self.model == "encoder_decoder":
            candidates, sizes, report["truncated_labels"] = self._label_tokens(tokenizer)
            columns["label_tokens"] = np.broadcast_to(candidates, (len(labels), *candidates.shape))
            columns["label_lengths"] = np.broadcast_to(sizes, (len(labels), *sizes.shape))
        return ExamplePlan(sequences, columns, seed, shuffle, report)

    def _label_tokens(self, tokenizer) -> tuple[np.ndarray, np.ndarray, int]:
        """Return each label's text and EOS, 0 behind [C, T], their lengths [C], how many were cut.

        The 0 behind may be an id of text: only the lengths say where a label ends.
        """
        width = self.decoder_length()
        found = np.zeros((len(self.labels), width), np.int32)
        cut, sizes = 0, np.zeros(len(self.labels), np.int32)
        for number, ids in enumerate(supervised.encode(tokenizer, self.labels)):
            cut += len(ids) >= width
            ids = [*ids[: width - 1], tokenizer.eos_id]
            found[number, : len(ids)] = ids
            sizes[number] = len(ids)
        return found, sizes, cut

    def preprocess(self, raw: Raw, rng: RowRandom, tokenizer, length: int) -> Batch:
        """Return the batch; nothing in it is random."""
        batch = self.row_batch(raw, length) | {"labels": raw["labels"]}
        if self.model != "encoder_decoder":
            return batch
        candidates = np.ascontiguousarray(raw["label_tokens"])
        chosen = np.arange(len(candidates)), raw["labels"]
        targets = candidates[chosen]
        real = supervised.filled(raw["label_lengths"][chosen], targets.shape[1])
        return batch | {
            "tokens": np.pad(targets[:, :-1], ((0, 0), (1, 0)), constant_values=tokenizer.start_id),
            "targets": targets,
            "segment_ids": real,
            "weights": real.astype(np.float32),
            "label_tokens": candidates,
            "label_lengths": np.ascontiguousarray(raw["label_lengths"]),
        }

    def counted(self, batch) -> jax.Array:
        """Return what is counted: 1 for each example [B], or for each token of its label [B, T]."""
        return batch["weights"] if self.model == "encoder_decoder" else real_rows(batch)

    def weighted(self, batch) -> jax.Array:
        """Return `counted` times the weight of the example's class."""
        counted = self.counted(batch)
        if not self.class_weights:
            return counted
        weights_B = jnp.take(jnp.asarray(self.class_weights, jnp.float32), batch["labels"])
        return counted * weights_B.reshape(-1, *(1,) * (counted.ndim - 1))

    def weights(self, batch) -> dict[str, jax.Array]:
        """Return the weight of the training loss: examples or label tokens, by their classes."""
        return {"loss": jnp.sum(self.weighted(batch))}

    def loss(self, model, params, batch, rng, train: bool) -> tuple[Sums, Sums]:
        """Return the term `loss` and the accuracy, of examples or of label tokens."""
        text = self.model == "encoder_decoder"
        logits = apply(model, params, batch, rng, train)["lm" if text else "classification"]
        targets, counted = batch["targets" if text else "labels"], self.counted(batch)
        total, weight, correct = self.cross_entropy(logits, targets, counted, train)
        metrics = {"accuracy": (correct, weight)}
        if train and self.class_weights:
            weights = self.weighted(batch)
            total, weight, _ = self.cross_entropy(logits, targets, weights, train)
        return {"loss": (total, weight)}, metrics

    def predict(self, model, params, batch) -> dict[str, jax.Array]:
        """Return `scores` float32 [B, C], log p(label) in nats (of its text, if written)."""
        if self.model != "encoder_decoder":
            logits = apply(model, params, batch, None, False)["classification"]
            return {"scores": jax.nn.log_softmax(logits.astype(jnp.float32))}

        # Under vmap only what depends on the label is done C times: the encoder runs once.
        def score(targets, lengths):
            real = (jnp.arange(targets.shape[1])[None] < lengths[:, None]).astype(jnp.int32)
            start = batch["tokens"][:, :1]
            inputs = jnp.concatenate([start, targets[:, :-1]], axis=1)
            row = batch | {"tokens": inputs, "segment_ids": real}
            logits = apply(model, params, row, None, False)["lm"]
            return losses.log_likelihood(logits, targets, real)

        texts = batch["label_tokens"], batch["label_lengths"]
        return {"scores": jax.vmap(score, in_axes=1, out_axes=1)(*texts)}
