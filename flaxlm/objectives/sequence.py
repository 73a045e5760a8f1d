"""What the objectives that judge a whole text share: its row, on every family."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from flaxlm.data.order import Raw, RowRandom
from flaxlm.data.pipeline import Batch
from flaxlm.data.vocabulary import Tokenizer
from flaxlm.errors import ConfigError
from flaxlm.objectives import supervised


@dataclasses.dataclass(frozen=True)
class SequenceObjective(supervised.Supervised):
    """Base of the objectives that judge one text or a pair.

    An encoder reads its tokenizer's template, by default `[CLS] a [SEP]` or `[CLS] a [SEP] b
    [SEP]`, and answers from its first token; a decoder or recurrent model reads `BOS a EOS` or
    `BOS a EOS b EOS` and answers from the last real one. An encoder-decoder reads `a EOS` or
    `a EOS b EOS`.
    """

    head: ClassVar[str] = "classification"

    def row_sequences(
        self, first: list[str], second: list[str], length: int, tokenizer: Tokenizer
    ) -> tuple[dict, dict]:
        """Return an ExamplePlan's sequences of texts, or of pairs, and what to report of them.

        Texts that are too long are cut, the longer of a pair first. An absent second one is ''.
        """
        one, two = (supervised.encode(tokenizer, texts) for texts in (first, second))
        pair, framed = any(map(len, two)), self.traits.bidirectional
        begin = [] if self.traits.encodes else [tokenizer.bos_id]
        framing = len(begin) + 1 + pair
        if framed:
            framing = (tokenizer.template.pair if pair else tokenizer.template.single).size
        room = length - framing
        if room < 1:
            raise ConfigError(f"train.length={length} leaves no room for text; increase it")
        one, two, cut = supervised.shorten(one, two, room)
        report = {"examples": len(one), "truncated": cut}
        if not framed:
            rows = supervised.ended(one, two, begin, tokenizer.eos_id)
            return {"text": supervised.flat(rows, length)}, report
        parts = zip(("text", "types"), supervised.framed(tokenizer.template, one, two), strict=True)
        return {name: supervised.flat(part, length) for name, part in parts}, report

    def preprocess(self, raw: Raw, rng: RowRandom, tokenizer, length: int) -> Batch:
        """Return the row's arrays and the labels; nothing in them is random."""
        return self.row_batch(raw, length) | {"labels": raw["labels"]}

    def weights(self, batch) -> dict[str, jax.Array]:
        """Return the number of examples."""
        return {"loss": jnp.sum(supervised.real_rows(batch))}
