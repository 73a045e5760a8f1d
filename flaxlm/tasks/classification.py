"""Labels for the rows of a file of one's own: one for each, or any number."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from flaxlm.data.sources import DataConfig
from flaxlm.errors import ConfigError
from flaxlm.metrics.labels import multilabel_measure
from flaxlm.metrics.measure import Measure
from flaxlm.tasks.labels import label_ids
from flaxlm.tasks.records import Record, count_labels, read_split
from flaxlm.tasks.task import Answer, Example, LabelTask, TableTask, check_count, values_of

Truths = tuple[bool, ...]


@dataclasses.dataclass(frozen=True)
class TextRows(TableTask):
    """Rows of a table with a text, and maybe a second one that is read together with it."""

    text_column: str = "text"  # the text
    pair_column: str = ""  # the second text; '' where there is none

    def texts(self, record: Record) -> Example:
        """Return {id, text, text_pair?} of a row."""
        example = {"id": record.id, "text": record.text(self.text_column)}
        return example | ({"text_pair": record.text(self.pair_column)} if self.pair_column else {})

    def names(self, record: Record) -> Sequence[str]:
        """Return the labels of a row, by name."""
        return ()

    def label_counts(self, data: DataConfig) -> dict[str, int]:
        """Return how often each label stands in the training rows."""
        return count_labels(data, lambda r: self.texts(r) | {"names": self.names(r)}, task=self)


@dataclasses.dataclass(frozen=True)
class Classification(TextRows, LabelTask):
    """Rows of a table with a text, maybe a second one, and a label."""

    label_column: str = "label"  # the label, one of `objective.labels`

    labels_key: ClassVar[str] = "label_column"

    def examples(self, data: DataConfig, split: str, labels: Sequence[str] = ()) -> list[Example]:
        """Return {id, text, text_pair?, label} for each row of a split; see `Task.examples`."""
        ids = label_ids(labels)

        def example(record: Record) -> Example:
            return self.texts(record) | {"label": record.label(self.label_column, ids)}

        return read_split(data, split, example, self.label_column, task=self)

    def names(self, record: Record) -> list[str]:
        """Return the label of a row."""
        return [record.label_name(self.label_column)]


@dataclasses.dataclass(frozen=True)
class MultiLabel(TextRows):
    """Rows of a table with a text, maybe a second one, and labels."""

    labels_column: str = "labels"  # the labels, of `objective.labels`: a JSON list, or a text
    separator: str = ","  # what stands between them in a text
    threshold: float = 0.5  # the probability from which on a label is given

    objective: ClassVar[str] = "multi_label"
    learns: ClassVar[str] = "labels"
    labels_key: ClassVar[str] = "labels_column"
    defaults: ClassVar[Mapping] = {"eval": {"metric": "f1_micro", "mode": "max"}}

    def __post_init__(self):
        if not self.separator:
            raise ConfigError("task.separator is empty; name what stands between two labels")
        if not 0 < self.threshold < 1:
            raise ConfigError(f"task.threshold={self.threshold} must be between 0 and 1")

    def examples(self, data: DataConfig, split: str, labels: Sequence[str] = ()) -> list[Example]:
        """Return {id, text, text_pair?, labels} for each row of a split; see `Task.examples`."""
        ids = label_ids(labels)

        def example(record: Record) -> Example:
            labels = record.labels(self.labels_column, ids, self.separator)
            return self.texts(record) | {"labels": labels}

        return read_split(data, split, example, self.labels_column, task=self)

    def names(self, record: Record) -> list[str]:
        """Return the labels of a row."""
        return record.label_names(self.labels_column, self.separator)

    def perfect(self, golds: Sequence[Truths]) -> list[Answer]:
        """Return the right labels, with a probability of 1."""
        return [Answer(gold, 1.0, np.array(gold, np.float64)) for gold in golds]

    def postprocess(self, outputs: Mapping[str, Any], examples: Sequence[Example]) -> list[Answer]:
        """Return the labels at least as likely as `threshold`, of outputs['probabilities'] [N, C].

        An answer's score is the probability of all its parts together, each by itself.
        """
        chances_NC = np.asarray(outputs["probabilities"], np.float64)
        check_count(chances_NC, examples)
        given_NC = chances_NC >= self.threshold
        sure_N = np.where(given_NC, chances_NC, 1.0 - chances_NC).prod(axis=1)
        rows = zip(given_NC.tolist(), sure_N.tolist(), chances_NC, strict=True)
        return [Answer(tuple(truths), sure, chances) for truths, sure, chances in rows]

    def measures(self, answers: Sequence[Answer], golds: Sequence[Truths]) -> list[Measure]:
        """Return the measure of the labels."""
        return [multilabel_measure(values_of(answers), golds)]

    def mistake(self, answer: Answer, gold: Truths) -> float:
        """Return the sum over wrong labels of how far their probabilities are off."""
        rows = zip(answer.value, gold, answer.scores, strict=True)
        return sum(abs(chance - truth) for chosen, truth, chance in rows if chosen != truth)

    def show(self, value: Truths, labels: Sequence[str] = ()) -> list:
        """Return the names of the labels that are true."""
        names = labels or range(len(value))
        return [name for name, truth in zip(names, value, strict=True) if truth]
