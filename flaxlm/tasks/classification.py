"""Classify the rows of a file of one's own."""

import dataclasses
from collections.abc import Sequence

from flaxlm.data.sources import DataConfig
from flaxlm.tasks.labels import label_ids
from flaxlm.tasks.records import Record, count_labels, read_split
from flaxlm.tasks.task import Example, LabelTask, TableTask


@dataclasses.dataclass(frozen=True)
class Classification(TableTask, LabelTask):
    """Rows of a table with a text, maybe a second one, and a label.

    Attributes:
      text_column: the text.
      pair_column: the second text; '' where there is none.
      label_column: the label, one of `objective.labels`.
    """

    text_column: str = "text"
    pair_column: str = ""
    label_column: str = "label"

    def examples(self, data: DataConfig, split: str, labels: Sequence[str] = ()) -> list[Example]:
        """Return {id, text, text_pair?, label} for each row of a split; see `Task.examples`."""
        ids = label_ids(labels)

        def example(record: Record) -> Example:
            return self.texts(record) | {"label": record.label(self.label_column, ids)}

        return read_split(data, split, example, self.label_column, task=self)

    def texts(self, record: Record) -> Example:
        """Return {id, text, text_pair?} of a row."""
        return record.texts(self.text_column, self.pair_column)

    def label_counts(self, data: DataConfig) -> dict[str, int]:
        """Return how often each label stands in the training rows."""
        names = lambda record: [record.label_name(self.label_column)]  # noqa: E731
        return count_labels(data, self.texts, names, task=self)
