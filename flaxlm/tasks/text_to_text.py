"""From one text to another, by the rows of a file of one's own."""

import dataclasses
from collections.abc import Sequence

from flaxlm.data.sources import DataConfig
from flaxlm.tasks.records import Record, read_split
from flaxlm.tasks.task import Example, TextTask


@dataclasses.dataclass(frozen=True)
class TextToText(TextTask):
    """Rows of a table with an input and a target.

    Attributes:
      input_column: the text that is given.
      target_column: the text that is asked for.
      prefix: put before every input, to tell tasks apart ('summarize: ').
    """

    input_column: str = "input"
    target_column: str = "target"
    prefix: str = ""

    def examples(self, data: DataConfig, split: str, labels: Sequence[str] = ()) -> list[Example]:
        """Return {id, text, target} for each row of a split; see `Task.examples`."""

        def example(record: Record) -> Example:
            return {
                "id": record.id,
                "text": self.prefix + record.text(self.input_column),
                "target": record.gold(self.target_column),
            }

        return read_split(data, split, example, self.target_column)
