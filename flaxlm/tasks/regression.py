"""A number for each row of a file of one's own: a score of a text, a similarity of two."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from flaxlm.data.sources import DataConfig
from flaxlm.errors import ConfigError
from flaxlm.metrics.measure import Measure
from flaxlm.metrics.numbers import regression_measure
from flaxlm.tasks.records import Record, read_split
from flaxlm.tasks.task import Answer, Example, TableTask, Task, check_count, values_of


@dataclasses.dataclass(frozen=True)
class NumberTask(Task):
    """One number for each example; `scored` are the metrics that its numbers have."""

    objective: ClassVar[str] = "regression"
    defaults: ClassVar[Mapping] = {"eval": {"metric": "spearman", "mode": "max"}}
    scored: ClassVar[tuple[str, ...]] = ("pearson", "spearman", "mse", "mae")

    def golds(self, examples: Sequence[Example]) -> list[float | None]:
        """Return the score of each example."""
        return [example["score"] for example in examples]

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
class Regression(TableTask, NumberTask):
    """Rows of a table with a text, maybe a second one, and a number.

    Attributes:
      text_column: the text.
      pair_column: the second text; '' where there is none. Both are read together.
      score_column: the number.
      low, high: its bounds, which every row is held to; equal: none.
    """

    text_column: str = "text"
    pair_column: str = ""
    score_column: str = "score"
    low: float = 0.0
    high: float = 0.0

    def __post_init__(self):
        if self.low > self.high:
            raise ConfigError(f"task.low={self.low} is above task.high={self.high}")

    def examples(self, data: DataConfig, split: str, labels: Sequence[str] = ()) -> list[Example]:
        """Return {id, text, text_pair?, score} for each row of a split; see `Task.examples`."""

        def example(record: Record) -> Example:
            score = record.number(self.score_column, self.low, self.high)
            return record.texts(self.text_column, self.pair_column) | {"score": score}

        return read_split(data, split, example, self.score_column, task=self)
