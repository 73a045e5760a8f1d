"""Sequence classification of one text or a pair, on every family."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from flaxlm.data.order import ExamplePlan, Raw, RowRandom
from flaxlm.data.pipeline import Batch
from flaxlm.errors import ConfigError, DataError
from flaxlm.objectives import losses, supervised
from flaxlm.objectives.objective import Objective, Spec, Sums, apply, floats, ints


@dataclasses.dataclass(frozen=True)
class Classification(Objective):
    """Choose one of `labels` for each example.

    An encoder reads its tokenizer's template, `[CLS] a [SEP]` or `[CLS] a [SEP] b [SEP]` unless
    another project's says otherwise, and classifies its first token; a decoder or recurrent model
    reads `BOS a EOS` or `BOS a EOS b EOS` and classifies the last real
    one. An encoder-decoder reads `a EOS` or `a EOS b EOS` and learns to write the label; its
    prediction is the label whose text it finds most likely.

    Attributes:
      labels: the names of the classes; an example's `label` is an index into them.
      target_length: decoder columns of an encoder-decoder; 0 for what the longest label can need
        in any tokenizer, its bytes and two more.
      class_weights: what an example of each label counts in the training loss, which is
        Σ w · loss / Σ w over the batch; empty: all the same. The loss of an evaluation has none.
      model: the key of MODELS that rows are laid out for; `for_model` sets it.
    """

    labels: tuple[str, ...] = ()
    target_length: int = 0
    class_weights: tuple[float, ...] = ()
    model: str = "encoder"

    name: ClassVar[str] = "classification"
    perplexity_of: ClassVar[str] = ""
    models: ClassVar[dict] = {"encoder": {}, "decoder": {}, "recurrent": {}, "encoder_decoder": {}}

    def __post_init__(self):
        super().__post_init__()
        object.__setattr__(self, "labels", tuple(self.labels))
        if len(self.labels) < 2 or len(set(self.labels)) != len(self.labels):
            raise ConfigError(
                f"objective.labels={self.labels}: two or more different labels are needed"
            )
        object.__setattr__(self, "class_weights", tuple(self.class_weights))
        count = len(self.class_weights)
        if count and (count != len(self.labels) or min(self.class_weights) <= 0):
            raise ConfigError(
                f"objective.class_weights={self.class_weights}: one positive number for each of "
                f"the {len(self.labels)} labels {self.labels} is needed"
            )

    def heads(self, model_name: str) -> dict[str, int]:
        """Return a head of C classes, or the LM head of an encoder-decoder."""
        super().heads(model_name)
        if model_name == "encoder_decoder":
            return {"lm": 0}
        return {"classification": len(self.labels)}

    def for_model(self, model_name: str) -> "Classification":
        """Return this objective with its rows laid out for a model of MODELS."""
        self.heads(model_name)
        return dataclasses.replace(self, model=model_name)

    def decoder_length(self) -> int:
        """Return the decoder columns that labels as text take."""
        return self.target_length or max(len(label.encode()) for label in self.labels) + 2

    def batch_spec(self, batch_size: int, length: int) -> Spec:
        """Return the row's arrays [B, L] and labels [B]; as text, label_tokens [B, C, T] too."""
        row = (batch_size, length)
        one = ints(labels=(batch_size,), example_ids=(batch_size,))
        if self.model == "encoder":
            return ints(tokens=row, segment_ids=row, token_types=row) | one
        if self.model != "encoder_decoder":
            return ints(tokens=row, segment_ids=row) | one
        few = (batch_size, self.decoder_length())
        spec = ints(encoder_tokens=row, encoder_segment_ids=row)
        spec |= ints(tokens=few, targets=few, segment_ids=few) | floats(weights=few) | one
        classes = (batch_size, len(self.labels))
        return spec | ints(label_tokens=(*classes, few[1]), label_lengths=classes)

    def plan(self, source, length: int, tokenizer, *, seed: int, shuffle: bool) -> ExamplePlan:
        """Return the order of examples with `text`, `label` and optionally `text_pair`.

        Texts that are too long are cut, the longer of a pair first; `report` says how many.
        """
        labels = np.asarray(supervised.column(source, "label", int), np.int32)
        bad = np.flatnonzero((labels < 0) | (labels >= len(self.labels)))
        if len(bad):
            raise DataError(
                f"example {source[int(bad[0])].get('id', bad[0])}: label {labels[bad[0]]} is not "
                f"in 0 … {len(self.labels) - 1} ({', '.join(self.labels)})"
            )
        first = supervised.encode(tokenizer, supervised.column(source, "text", str))
        pairs = supervised.column(source, "text_pair", str, required=False)
        second = supervised.encode(tokenizer, pairs)
        pair, encoder = any(map(len, second)), self.model == "encoder"
        begin = [] if self.model == "encoder_decoder" else [tokenizer.bos_id]
        framing = len(begin) + 1 + pair
        if encoder:
            framing = (tokenizer.template.pair if pair else tokenizer.template.single).size
        room = length - framing
        if room < 1:
            raise ConfigError(f"train.length={length} holds no text; increase it")
        first, second, cut = supervised.shorten(first, second, room)
        columns, sequences = {"labels": labels}, {}
        report = {"examples": len(first), "truncated": cut}
        if encoder:
            rows, types = supervised.framed(tokenizer.template, first, second)
            sequences["types"] = supervised.flat(types, length)
        else:
            rows = supervised.join(*begin, first, tokenizer.eos_id)
            rows = supervised.join(rows, supervised.with_end(second, tokenizer.eos_id))
        if self.model == "encoder_decoder":
            candidates, sizes, report["truncated_labels"] = self._label_tokens(tokenizer)
            columns["label_tokens"] = np.broadcast_to(candidates, (len(rows), *candidates.shape))
            columns["label_lengths"] = np.broadcast_to(sizes, (len(rows), *sizes.shape))
        sequences["text"] = supervised.flat(rows, length)
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
        segments = supervised.filled(raw["text_lengths"], length)
        one = {"labels": raw["labels"], "example_ids": raw["example_ids"]}
        if self.model != "encoder_decoder":
            batch = {"tokens": raw["text"], "segment_ids": segments} | one
            if self.model == "encoder":
                batch["token_types"] = raw["types"]
            return batch
        candidates = np.ascontiguousarray(raw["label_tokens"])
        chosen = np.arange(len(candidates)), raw["labels"]
        targets = candidates[chosen]
        real = supervised.filled(raw["label_lengths"][chosen], targets.shape[1])
        return {
            "encoder_tokens": raw["text"],
            "encoder_segment_ids": segments,
            "tokens": np.pad(targets[:, :-1], ((0, 0), (1, 0)), constant_values=tokenizer.start_id),
            "targets": targets,
            "segment_ids": real,
            "weights": real.astype(np.float32),
            "label_tokens": candidates,
            "label_lengths": np.ascontiguousarray(raw["label_lengths"]),
        } | one

    def counted(self, batch) -> jax.Array:
        """Return what is counted: 1 for each example [B], or for each token of its label [B, T]."""
        if self.model == "encoder_decoder":
            return batch["weights"]
        return (batch["example_ids"] >= 0).astype(jnp.float32)

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
