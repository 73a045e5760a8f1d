"""What the objectives that judge a whole text share: its row, on every family."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from flaxlm.data.order import Raw
from flaxlm.data.pipeline import Batch
from flaxlm.data.vocabulary import Tokenizer
from flaxlm.errors import ConfigError
from flaxlm.objectives import supervised
from flaxlm.objectives.objective import Objective, Spec, ints


@dataclasses.dataclass(frozen=True)
class SequenceObjective(Objective):
    """Base of the objectives that say something of one text or a pair.

    An encoder reads its tokenizer's template, `[CLS] a [SEP]` or `[CLS] a [SEP] b [SEP]` unless
    another project's says otherwise, and speaks of its first token; a decoder or recurrent model
    reads `BOS a EOS` or `BOS a EOS b EOS` and speaks of the last real one. An encoder-decoder
    reads `a EOS` or `a EOS b EOS`.

    Attributes:
      model: the key of MODELS that rows are laid out for; `for_model` sets it.
    """

    model: str = "encoder"

    perplexity_of: ClassVar[str] = ""

    def for_model(self, model_name: str) -> "SequenceObjective":
        """Return this objective with its rows laid out for a model of MODELS."""
        self.heads(model_name)
        return dataclasses.replace(self, model=model_name)

    @property
    def prefix(self) -> str:
        """What stands before the names of a row's arrays in the batch."""
        return "encoder_" if self.model == "encoder_decoder" else ""

    def row_spec(self, batch_size: int, length: int) -> Spec:
        """Return the entries of a row's arrays [B, L], and example_ids [B]."""
        names = [f"{self.prefix}tokens", f"{self.prefix}segment_ids"]
        names += ["token_types"] * (self.model == "encoder")
        row = (batch_size, length)
        return ints(**dict.fromkeys(names, row), example_ids=(batch_size,))

    def row_sequences(
        self, first: list[str], second: list[str], length: int, tokenizer: Tokenizer
    ) -> tuple[dict, dict]:
        """Return an ExamplePlan's sequences of texts, or of pairs, and what to report of them.

        Texts that are too long are cut, the longer of a pair first. An absent second one is ''.
        """
        one, two = (supervised.encode(tokenizer, texts) for texts in (first, second))
        pair, encoder = any(map(len, two)), self.model == "encoder"
        begin = [] if self.model == "encoder_decoder" else [tokenizer.bos_id]
        framing = len(begin) + 1 + pair
        if encoder:
            framing = (tokenizer.template.pair if pair else tokenizer.template.single).size
        room = length - framing
        if room < 1:
            raise ConfigError(f"train.length={length} holds no text; increase it")
        one, two, cut = supervised.shorten(one, two, room)
        report = {"examples": len(one), "truncated": cut}
        if encoder:
            rows, types = supervised.framed(tokenizer.template, one, two)
            return {
                "text": supervised.flat(rows, length),
                "types": supervised.flat(types, length),
            }, report
        rows = supervised.join(*begin, one, tokenizer.eos_id)
        rows = supervised.join(rows, supervised.with_end(two, tokenizer.eos_id))
        return {"text": supervised.flat(rows, length)}, report

    def row_batch(self, raw: Raw, length: int) -> Batch:
        """Return the arrays of `row_spec`."""
        batch = {
            f"{self.prefix}tokens": raw["text"],
            f"{self.prefix}segment_ids": supervised.filled(raw["text_lengths"], length),
            "example_ids": raw["example_ids"],
        }
        if self.model == "encoder":
            batch["token_types"] = raw["types"]
        return batch

    def weights(self, batch) -> dict[str, jax.Array]:
        """Return the number of examples; of what is written as text, of its tokens."""
        if "weights" in batch:
            return super().weights(batch)
        return {"loss": jnp.sum(real_rows(batch))}


def set_labels(objective) -> None:
    """Make `labels` a tuple; ConfigError unless it names two labels or more, each once."""
    labels = tuple(objective.labels)
    object.__setattr__(objective, "labels", labels)
    if len(labels) < 2 or len(set(labels)) != len(labels):
        raise ConfigError(f"objective.labels={labels}: two or more different labels are needed")


def set_class_weights(objective) -> None:
    """Make `class_weights` a tuple; ConfigError unless it is empty or a number for each label."""
    weights = tuple(objective.class_weights)
    object.__setattr__(objective, "class_weights", weights)
    if weights and (len(weights) != len(objective.labels) or min(weights) <= 0):
        raise ConfigError(
            f"objective.class_weights={weights}: one positive number for each of the "
            f"{len(objective.labels)} labels {objective.labels} is needed"
        )


def texts_of(source) -> tuple[list[str], list[str]]:
    """Return `text` of each example, and `text_pair` or ''."""
    first = supervised.column(source, "text", str)
    return first, supervised.column(source, "text_pair", str, required=False)


def real_rows(batch) -> jax.Array:
    """Return float32 [B], 0 on rows that only fill the batch."""
    return (batch["example_ids"] >= 0).astype(jnp.float32)
