"""A number for each row of a file of one's own: of a text or of two read together (`regression`).

`similarity` compares the vectors of two texts that are read apart (a bi-encoder).
"""

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from flaxlm.data.sources import DataConfig
from flaxlm.errors import ConfigError, DataError, choose
from flaxlm.metrics.measure import Measure
from flaxlm.metrics.numbers import regression_measure
from flaxlm.tasks.classification import TextRows
from flaxlm.tasks.records import Record, read_split
from flaxlm.tasks.task import Answer, Example, Examples, Task, check_count, values_of

PAIRS = ("scored", "given")


@dataclasses.dataclass(frozen=True)
class NumberTask(Task):
    """One number for each example; `scored` are the metrics that its numbers have."""

    objective: ClassVar[str] = "regression"
    learns: ClassVar[str] = "score"
    defaults: ClassVar[Mapping] = {"eval": {"metric": "spearman", "mode": "max"}}
    scored: ClassVar[tuple[str, ...]] = ("pearson", "spearman", "mse", "mae")

    def postprocess(self, outputs: Mapping[str, Any], examples: Sequence[Example]) -> list[Answer]:
        """Return outputs['values'] [N]."""
        check_count(outputs["values"], examples)
        return [Answer(value) for value in np.asarray(outputs["values"], np.float64).tolist()]

    def measures(self, answers: Sequence[Answer], golds: Sequence[float]) -> list[Measure]:
        """Return the `scored` ones of `regression_measure`."""
        return [regression_measure(values_of(answers), golds).only(self.scored)]

    def mistake(self, answer: Answer, gold: float) -> float:
        """Return the absolute error."""
        return abs(answer.value - gold)

    def show(self, value: float, labels: Sequence[str] = ()) -> float:
        """Return the number, to six places."""
        return round(value, 6)


@dataclasses.dataclass(frozen=True)
class Regression(TextRows, NumberTask):
    """Rows of a table with a text, maybe a second one, and a number."""

    score_column: str = "score"  # the number
    low: float = 0.0  # the least that it may be
    high: float = 0.0  # the most that it may be; no bounds where both are equal

    def __post_init__(self):
        if self.low > self.high:
            raise ConfigError(f"task.low={self.low} is above task.high={self.high}")

    def examples(self, data: DataConfig, split: str, labels: Sequence[str] = ()) -> list[Example]:
        """Return {id, text, text_pair?, score} for each row of a split; see `Task.examples`."""

        def example(record: Record) -> Example:
            score = record.number(self.score_column, self.low, self.high)
            return self.texts(record) | {"score": score}

        return read_split(data, split, example, self.score_column, task=self)


@dataclasses.dataclass(frozen=True)
class Similarity(TextRows, NumberTask):
    """Rows of a table with two texts and how alike they are, by the cosine of their vectors.

    It is trained on pairs that belong together, and judged by the rank correlation of cosines with
    the scores of all pairs.
    """

    text_column: str = "sentence1"  # the one text
    pair_column: str = "sentence2"  # the other
    score_column: str = "score"  # how alike they are, on any scale
    threshold: float = 4.0  # the score from which on two texts belong together
    pairs: str = "scored"  # trained on: `scored`, pairs of at least threshold; `given`, all

    objective: ClassVar[str] = "in_batch"
    # Cosines and scores have units of their own: their difference means nothing.
    scored: ClassVar[tuple[str, ...]] = ("spearman", "pearson")

    def __post_init__(self):
        choose("task.pairs", self.pairs, PAIRS)

    def examples(self, data: DataConfig, split: str, labels: Sequence[str] = ()) -> list[Example]:
        """Return {id, text, text_pair, score, label} for each row of a split.

        `label` is 1 for two texts that belong together; in the train split there are no others.
        """
        training = split == "train"
        unscored = training and self.pairs == "given"

        def example(record: Record) -> Example:
            pair = record.text(self.pair_column)
            score = None if unscored else record.number(self.score_column)
            label = None if score is None else int(score >= self.threshold)
            labelled = {"score": score, "label": 1 if unscored else label}
            return self.texts(record) | {"text_pair": pair} | labelled

        examples = read_split(data, split, example, self.score_column, task=self)
        if not training:
            return examples
        positive = Examples((e for e in examples if e["label"]), examples.read)
        if not positive:
            raise DataError(
                f"none of the {len(examples)} training pairs has a score of task.threshold="
                f"{self.threshold} or more; lower it, or set task.pairs='given'"
            )
        if len(positive) < len(examples):
            warnings.warn(
                f"{len(positive)} of {len(examples)} training pairs have a score of task.threshold="
                f"{self.threshold} or more; the others are left out",
                stacklevel=1,
            )
        return positive

    def mistake(self, answer, gold: float) -> float:
        """Return how much two texts that belong together are apart, or the cosine of others."""
        return 1.0 - answer.value if gold >= self.threshold else max(0.0, answer.value)
