"""Classify the rows of a file of one's own."""

import dataclasses
from collections.abc import Sequence

from flaxlm.data.sources import DataConfig
from flaxlm.tasks.labels import label_ids
from flaxlm.tasks.records import Record, found_labels, read_split
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
            found = {"id": record.id, "text": record.text(self.text_column)}
            if self.pair_column:
                found["text_pair"] = record.text(self.pair_column)
            return found | {"label": record.label(self.label_column, ids)}

        return read_split(data, split, example, self.label_column, task=self)

    def found_labels(self, data: DataConfig) -> list[str]:
        """Return the labels of the training rows."""
        return found_labels(data, lambda record: [record.label_name(self.label_column)], task=self)
