"""Perplexity of whole texts, read in windows that overlap."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from flaxlm.data.clean import Cleaner
from flaxlm.data.sources import DataConfig, documents
from flaxlm.data.split import split_documents
from flaxlm.errors import ConfigError, DataError
from flaxlm.inference.requests import Reader, Request, Scores, windows
from flaxlm.metrics import Interval, ratio_interval
from flaxlm.tasks.by_likelihood import Gold, Ranked
from flaxlm.tasks.task import Answer, Example

SHOWN = 200  # characters of a text in a report


@dataclasses.dataclass(frozen=True)
class Perplexity(Ranked):
    """The documents of `data.path`, each token judged once by a model that reads left to right.

    Attributes:
      window: most tokens read at once, if the model has positions for them.
      stride: tokens judged in each window but the first: all have window − stride before them.
    """

    window: int = 512
    stride: int = 256

    def __post_init__(self):
        super().__post_init__()
        if not 1 <= self.stride <= self.window:
            raise ConfigError(
                f"task.stride={self.stride} must be between 1 and task.window={self.window}"
            )

    def examples(self, data: DataConfig, split: str, labels: Sequence[str] = ()) -> list[Example]:
        """Return {id, text, groups} for each document of a split."""
        if data.split == "whole":
            cleaner = Cleaner(data)
            texts = ((d.id, cleaner(d.text)) for d in documents(data))
        else:
            texts = ((d.id, d.text) for of, d in split_documents(data) if of == split)
        found = [{"id": i, "text": t, "groups": ()} for i, t in texts if t is not None]
        if not found:
            raise DataError(f"the {split} split of {', '.join(data.paths)} holds no text")
        return found

    def requests(self, examples: Sequence[Example], reader: Reader) -> list[list[Request]]:
        """Return the windows of each document, which begins with BOS."""
        if reader.traits.encodes or reader.traits.bidirectional:
            raise ConfigError(
                f"task perplexity judges text from left to right, and model {reader.family!r} does "
                "not read that way; it needs one that goes on from what it has read, as a decoder"
            )
        window = min(self.window, reader.limit or self.window)
        bos = reader.tokenizer.bos_id
        texts = reader.tokenizer.encode_batch([example["text"] for example in examples])
        return [list(windows([bos, *ids], window, min(self.stride, window))) for ids in texts]

    def answer(self, example: Example, scores: Scores, masked: bool) -> Answer:
        """Return the nats of a document, and its tokens, bytes and words."""
        nats = -float(scores.log_likelihood.sum())
        value = {
            "nats": nats,
            "tokens": int(scores.num_tokens.sum()),
            "bytes": len(example["text"].encode()),
            "words": len(example["text"].split()),
        }
        return Answer(value, -nats)

    def values(self, answers: Sequence[Answer], golds: Sequence[Gold]) -> dict[str, np.ndarray]:
        """Return nats, tokens, bytes and words of each document."""
        names = ("nats", "tokens", "bytes", "words")
        return {name: np.array([float(a.value[name]) for a in answers]) for name in names}

    def metrics(self, answers: Sequence[Answer], golds: Sequence[Gold]) -> dict[str, float]:
        """Return the perplexity of a token and of a word, bits a byte, and the number of tokens."""
        sums = {name: values.sum() for name, values in self.values(answers, golds).items()}
        found = {name: transform(sums["nats"] / max(sums[of], 1)) for name, of, transform in RATIOS}
        return found | {"tokens": float(sums["tokens"])}

    def intervals(
        self, answers: Sequence[Answer], golds: Sequence[Gold], seed: int = 0
    ) -> dict[str, Interval]:
        """Return the 95 % bootstrap interval over documents of all of `metrics` but the count."""
        columns = self.values(answers, golds)
        found = {}
        for name, of, transform in RATIOS:
            low, high = ratio_interval(columns["nats"], columns[of], seed=seed)
            found[name] = transform(low), transform(high)
        return found

    def mistake(self, answer: Answer, gold: Gold) -> float:
        """Return the nats a token."""
        return answer.value["nats"] / max(answer.value["tokens"], 1)

    def show_input(self, example: Example) -> Any:
        """Return the beginning of the text."""
        return example["text"][:SHOWN]


def _exp(nats: float) -> float:
    return float(np.exp(min(nats, 700.0)))


def _bits(nats: float) -> float:
    return float(nats / np.log(2))


# Metric, what its nats are divided by, and what is made of the mean.
RATIOS = (
    ("perplexity", "tokens", _exp),
    ("word_perplexity", "words", _exp),
    ("bits_per_byte", "bytes", _bits),
)
