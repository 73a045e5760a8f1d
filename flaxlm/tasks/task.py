"""What a task is: where its examples come from, and what its answers are worth."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from flaxlm.data.sources import DataConfig
from flaxlm.errors import ConfigError, DataError
from flaxlm.tasks.metrics import (
    TEXT_SCORES,
    Interval,
    classification_intervals,
    classification_scores,
    mean_interval,
)

SPLITS = ("train", "valid", "test")

Example = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Task:
    """Base of every task; the fields of a task are the `task` section of a config.

    Attributes:
      objective: the key of `OBJECTIVES` that the task is trained with, '' for any that reads
        plain text.
    """

    objective: ClassVar[str] = ""

    def examples(self, data: DataConfig, split: str, labels: Sequence[str] = ()) -> list[Example]:
        """Return the examples of a split, in a fixed order.

        Args:
          data: where the records stand and how they are split.
          split: 'train', 'valid' or 'test'.
          labels: the names of the classes, in the order of their ids.

        Returns:
          dicts with `id` (file and place), `text`, `text_pair` for a second sentence, and `label`
          (int, an index into `labels`) or `target` (str).

        Raises:
          DataError: a record does not fit; file, line and column are named.
        """
        raise ConfigError(
            f"task {type(self).__name__} has no examples: its corpus is the training text itself"
        )

    def golds(self, examples: Sequence[Example]) -> list:
        """Return the right answer of each example, as `metrics` compares it."""
        return []

    def postprocess(self, outputs: Mapping[str, Any], examples: Sequence[Example]) -> list:
        """Return an answer for each example from what the model put out for all of them."""
        return []

    def metrics(self, predictions: Sequence, golds: Sequence) -> dict[str, float]:
        """Return {name: score} over a whole split."""
        return {}

    def intervals(
        self, predictions: Sequence, golds: Sequence, seed: int = 0
    ) -> dict[str, Interval]:
        """Return {name: (low, high)}, the 95 % bootstrap interval of each of `metrics`."""
        return {}


@dataclasses.dataclass(frozen=True)
class LabelTask(Task):
    """One of a fixed set of labels for each example."""

    objective: ClassVar[str] = "classification"

    def golds(self, examples: Sequence[Example]) -> list[int]:
        """Return the label id of each example."""
        return [example["label"] for example in examples]

    def postprocess(self, outputs: Mapping[str, Any], examples: Sequence[Example]) -> list[int]:
        """Return the best-scored label id of each example from outputs['scores'] [N, C]."""
        scores = np.asarray(outputs["scores"])
        if len(scores) != len(examples):
            raise DataError(f"{len(scores)} rows of scores for {len(examples)} examples")
        return np.argmax(scores, axis=-1).tolist()

    def metrics(self, predictions: Sequence[int], golds: Sequence[int]) -> dict[str, float]:
        """Return accuracy, and precision, recall, F1, macro and micro."""
        return classification_scores(predictions, golds)

    def intervals(
        self, predictions: Sequence[int], golds: Sequence[int], seed: int = 0
    ) -> dict[str, Interval]:
        """Return the 95 % bootstrap interval of each of `metrics`."""
        return classification_intervals(predictions, golds, seed=seed)


@dataclasses.dataclass(frozen=True)
class TextTask(Task):
    """A text for each example."""

    objective: ClassVar[str] = "text_to_text"

    def golds(self, examples: Sequence[Example]) -> list[str]:
        """Return the reference text of each example."""
        return [example["target"] for example in examples]

    def postprocess(self, outputs: Mapping[str, Any], examples: Sequence[Example]) -> list[str]:
        """Return outputs['text'] [N], the generated texts, without white space around them."""
        texts = [str(text).strip() for text in outputs["text"]]
        if len(texts) != len(examples):
            raise DataError(f"{len(texts)} generated texts for {len(examples)} examples")
        return texts

    def metrics(self, predictions: Sequence[str], golds: Sequence[str]) -> dict[str, float]:
        """Return ROUGE-L and the share of exact matches."""
        return {
            name: float(score(predictions, golds).mean()) for name, score in TEXT_SCORES.items()
        }

    def intervals(
        self, predictions: Sequence[str], golds: Sequence[str], seed: int = 0
    ) -> dict[str, Interval]:
        """Return the 95 % bootstrap interval of each of `metrics`."""
        return {
            name: mean_interval(score(predictions, golds), seed=seed)
            for name, score in TEXT_SCORES.items()
        }


def label_ids(labels: Sequence[str]) -> dict[str, int]:
    """Return {label: id}; ConfigError unless `labels` names at least two, each once."""
    ids = {label: index for index, label in enumerate(labels)}
    if len(ids) < 2 or len(ids) != len(labels):
        raise ConfigError(
            f"objective.labels={tuple(labels)!r} must name at least two labels, each once"
        )
    return ids
