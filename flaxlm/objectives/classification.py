"""Sequence classification of one text or a pair, on every family."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from flaxlm.data.order import ExamplePlan, Raw, RowRandom
from flaxlm.data.pipeline import Batch
from flaxlm.models import MODELS, Model, losses
from flaxlm.objectives import supervised
from flaxlm.objectives.objective import Spec, apply, floats, ints
from flaxlm.objectives.sequence import SequenceObjective


@dataclasses.dataclass(frozen=True)
class Classification(supervised.Classifier, SequenceObjective):
    """Choose one of `labels` for each example.

    An encoder-decoder learns to write the label; its prediction is the label whose text it finds
    most likely.

    Attributes:
      target_length: decoder columns of an encoder-decoder; 0 for what the longest label can need
        in any tokenizer, its bytes and two more.
    """

    target_length: int = 0

    name: ClassVar[str] = "classification"

    @classmethod
    def fits(cls, row: Model) -> bool:
        """Return whether a model has a head for classes, or writes them."""
        return row.encodes or super().fits(row)

    def heads(self, model_name: str) -> dict[str, int]:
        """Return a head of C classes, or the LM head of an encoder-decoder."""
        heads = super().heads(model_name)
        return {"lm": 0} if MODELS[model_name].encodes else heads

    def decoder_length(self) -> int:
        """Return the decoder columns that labels as text take."""
        return self.target_length or max(len(label.encode()) for label in self.labels) + 2

    def batch_spec(self, batch_size: int, length: int) -> Spec:
        """Return the row's arrays [B, L] and labels [B]; as text, label_tokens [B, C, T] too."""
        spec = self.row_spec(batch_size, length) | ints(labels=(batch_size,))
        if not self.traits.encodes:
            return spec
        few = (batch_size, self.decoder_length())
        spec |= ints(tokens=few, targets=few, segment_ids=few) | floats(weights=few)
        classes = (batch_size, len(self.labels))
        return spec | ints(label_tokens=(*classes, few[1]), label_lengths=classes)

    def plan(self, source, length: int, tokenizer, *, seed: int, shuffle: bool) -> ExamplePlan:
        """Return the order of examples with `text`, `label` and optionally `text_pair`."""
        labels = np.asarray(supervised.gold(source, "label", int, shuffle), np.int32)
        for number, label in enumerate(labels):
            supervised.check_ids(source, number, [label], self.labels)
        if shuffle or any(example.get("label") is not None for example in source):
            counts = np.bincount(labels, minlength=len(self.labels))
            supervised.warn_absent(counts, self.labels, shuffle)
        sequences, report = self.row_sequences(*supervised.texts_of(source), length, tokenizer)
        columns = {"labels": labels}
        if self.traits.encodes:
            candidates, sizes, report["truncated_labels"] = self._label_tokens(tokenizer)
            columns["label_tokens"] = np.broadcast_to(candidates, (len(labels), *candidates.shape))
            columns["label_lengths"] = np.broadcast_to(sizes, (len(labels), *sizes.shape))
        return ExamplePlan(sequences, columns, seed, shuffle, report)

    def _label_tokens(self, tokenizer) -> tuple[np.ndarray, np.ndarray, int]:
        """Return each label's text and EOS [C, T], their lengths [C], and how many were cut.

        Columns behind a label hold 0, which may be an id of text: only the lengths tell.
        """
        width = self.decoder_length()
        tokens = np.zeros((len(self.labels), width), np.int32)
        cut, sizes = 0, np.zeros(len(self.labels), np.int32)
        for number, ids in enumerate(supervised.encode(tokenizer, self.labels)):
            cut += len(ids) >= width
            ids = [*ids[: width - 1], tokenizer.eos_id]
            tokens[number, : len(ids)] = ids
            sizes[number] = len(ids)
        return tokens, sizes, cut

    def preprocess(self, raw: Raw, rng: RowRandom, tokenizer, length: int) -> Batch:
        """Return the batch; nothing in it is random."""
        batch = super().preprocess(raw, rng, tokenizer, length)
        if not self.traits.encodes:
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
        """Return 1 for each example [B], or for each token of its label [B, T]."""
        text = self.traits.encodes
        return batch["weights"] if text else supervised.real_rows(batch)

    @property
    def judged(self) -> tuple[str, str]:
        """The head, and what it should say: the label, or the tokens of its text."""
        return ("lm", "targets") if self.traits.encodes else super().judged

    def predict(self, model, params, batch) -> dict[str, jax.Array]:
        """Return `scores` float32 [B, C], log p(label) in nats (of its text, if it is written)."""
        if not self.traits.encodes:
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
