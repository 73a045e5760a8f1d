"""Perplexity of whole texts, read in windows that overlap."""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from flaxlm.data.sources import DataConfig
from flaxlm.data.split import split_documents
from flaxlm.errors import ConfigError, DataError
from flaxlm.inference.requests import Reader, Request, Scores, check_left_to_right, windows
from flaxlm.metrics.measure import Measure, bits, perplexity, ratio_measure
from flaxlm.tasks.by_likelihood import Gold, Ranked
from flaxlm.tasks.task import Answer, Example, Examples

SHOWN = 200  # characters of a text in a report


@dataclasses.dataclass(frozen=True)
class Perplexity(Ranked):
    """The documents of `data.path`, each token judged once by a model that reads left to right."""

    reads_documents: ClassVar[bool] = True
    window: int = 512  # most tokens read at once, if the model has positions for them
    stride: int = 256  # tokens judged in each window but the first, behind window − stride

    def __post_init__(self):
        super().__post_init__()
        if not 1 <= self.stride <= self.window:
            raise ConfigError(
                f"task.stride={self.stride} must be between 1 and task.window={self.window}"
            )

    def examples(self, data: DataConfig, split: str, labels: Sequence[str] = ()) -> list[Example]:
        """Return {id, text, groups} for each document of a split."""
        if data.split == "whole":
            split = "train"  # which stands for them all
        documents = list(split_documents(data))
        examples = [{"id": d.id, "text": d.text} for part, d in documents if part == split]
        if not examples:
            raise DataError(f"the {split} split of {', '.join(data.paths)} holds no text")
        return Examples(examples, len(documents))

    def requests(self, examples: Sequence[Example], reader: Reader) -> list[list[Request]]:
        """Return the windows of each document, which begins with BOS."""
        check_left_to_right(reader.family)
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
        tokens = sum(answer.value["tokens"] for answer in answers)
        return super().metrics(answers, golds) | {"tokens": float(tokens)}

    def measures(self, answers: Sequence[Answer], golds: Sequence[Gold]) -> list[Measure]:
        """Return all of `metrics` but the count; documents are drawn."""
        columns = self.values(answers, golds)
        return [ratio_measure(name, columns["nats"], columns[of], to) for name, of, to in RATIOS]

    def mistake(self, answer: Answer, gold: Gold) -> float:
        """Return the nats a token."""
        return answer.value["nats"] / max(answer.value["tokens"], 1)

    def show_input(self, example: Example) -> Any:
        """Return the beginning of the text."""
        return example["text"][:SHOWN]


# Metric, what its nats are divided by, and what is made of the mean.
RATIOS = (
    ("perplexity", "tokens", perplexity),
    ("word_perplexity", "words", perplexity),
    ("bits_per_byte", "bytes", bits),
)
