"""What is said of a whole text or a pair of texts, on every family: a class, labels, a number."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from flaxlm.data.order import ExamplePlan, Raw, RowRandom
from flaxlm.data.pipeline import Batch
from flaxlm.data.vocabulary import Tokenizer
from flaxlm.errors import ConfigError, DataError
from flaxlm.models import MODELS, Model, losses
from flaxlm.objectives import supervised
from flaxlm.objectives.objective import Spec, Sums, apply, floats, ints, real_rows, without


@dataclasses.dataclass(frozen=True)
class SequenceObjective(supervised.Supervised):
    """Base of the objectives that judge one text or a pair.

    An encoder answers from its first token, a decoder or recurrent model from the last real one;
    an encoder-decoder writes what it answers.
    """

    head: ClassVar[str] = "classification"

    def row_sequences(
        self, first: list[str], second: list[str], length: int, tokenizer: Tokenizer
    ) -> tuple[dict, dict]:
        """Return an ExamplePlan's sequences of texts, or of pairs, and what to report of them.

        Texts that are too long are cut, the longer of a pair first. An absent second one is ''.
        """
        one, two = (supervised.encode(tokenizer, texts) for texts in (first, second))
        template = self.template(tokenizer)
        room = length - (template.pair if any(map(len, two)) else template.single).size
        if room < 1:
            raise ConfigError(f"train.length={length} leaves no room for text; increase it")
        one, two, cut = supervised.shorten(one, two, room)
        ids, types = supervised.framed(template, one, two)
        sequences = {"text": supervised.flat(ids, length)}
        if self.traits.bidirectional:
            sequences["types"] = supervised.flat(types, length)
        return sequences, {"examples": len(one), "truncated": cut}

    def preprocess(self, raw: Raw, rng: RowRandom, tokenizer, length: int) -> Batch:
        """Return the row's arrays and the labels; nothing in them is random."""
        return self.row_batch(raw, length) | {"labels": raw["labels"]}

    def weights(self, batch) -> dict[str, jax.Array]:
        """Return the number of examples."""
        return {"loss": jnp.sum(real_rows(batch))}


@dataclasses.dataclass(frozen=True)
class Classification(supervised.Classifier, SequenceObjective):
    """Choose one of `labels` for each example.

    An encoder-decoder learns to write the label; its prediction is the label whose text it finds
    most likely. A label takes at most its bytes and two columns more, whatever the tokenizer.
    """

    target_length: int = 0  # decoder columns of an encoder-decoder; 0: what any label can need

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
            for name, array in (("label_tokens", candidates), ("label_lengths", sizes)):
                columns[name] = np.broadcast_to(array, (len(labels), *array.shape))
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
        return batch["weights"] if self.traits.encodes else real_rows(batch)

    @property
    def judged(self) -> tuple[str, str]:
        """The head, and what it should say: the label, or the tokens of its text."""
        return ("lm", "targets") if self.traits.encodes else super().judged

    def predict(self, model, params, batch) -> dict[str, jax.Array]:
        """Return `scores` float32 [B, C], log p(label) in nats (of its text, if it is written)."""
        if not self.traits.encodes:
            return super().predict(model, params, batch)

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
        values_B, real_B = self.values(model, params, batch, rng, train), real_rows(batch)
        errors_B = jnp.square(values_B - batch["labels"]) * real_B
        return {"loss": (jnp.sum(errors_B), jnp.sum(real_B))}, {}

    def predict(self, model, params, batch) -> dict[str, jax.Array]:
        """Return `values` float32 [B]."""
        return {"values": self.values(model, params, batch, None, False)}

    def values(self, model, params, batch, rng, train: bool) -> jax.Array:
        """Return the head's one number, float32 [B]."""
        return apply(model, params, batch, rng, train)["classification"][:, 0].astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class MultiLabel(SequenceObjective):
    """Say of each of `labels` whether an example has it, by a sigmoid of its own.

    The loss is the cross entropy in nats, averaged over examples and labels, as `transformers` has
    it for multi_label_classification. Label smoothing ε makes targets of ε/2 and 1 − ε/2.
    """

    labels: tuple[str, ...] = ()  # names; an example's `labels` says true or false of each

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
        return {"loss": jnp.sum(real_rows(batch)) * len(self.labels)}

    def loss(self, model, params, batch, rng, train: bool) -> tuple[Sums, Sums]:
        """Return the term `loss`."""
        logits_BC = apply(model, params, batch, rng, train)["classification"].astype(jnp.float32)
        share = self.label_smoothing if train else 0.0
        targets_BC = batch["labels"] * (1.0 - share) + share / 2.0
        # −y log σ(x) − (1 − y) log σ(−x) = log(1 + eˣ) − x y
        nats_BC = jax.nn.softplus(logits_BC) - logits_BC * targets_BC
        total = jnp.sum(nats_BC * real_rows(batch)[:, None])
        return {"loss": (total, self.weights(batch)["loss"])}, {}

    def predict(self, model, params, batch) -> dict[str, jax.Array]:
        """Return `probabilities` float32 [B, C], each label's own."""
        logits_BC = apply(model, params, batch, None, False)["classification"]
        return {"probabilities": jax.nn.sigmoid(logits_BC.astype(jnp.float32))}
