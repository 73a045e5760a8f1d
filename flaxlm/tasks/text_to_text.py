"""From one text to another, by the rows of a file of one's own; summaries are such texts."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import ClassVar

from flaxlm.data.sources import DataConfig
from flaxlm.tasks.records import Record, in_directory, read_split
from flaxlm.tasks.task import Example, TableTask
from flaxlm.tasks.text_task import TextTask, learnt, texts_of


@dataclasses.dataclass(frozen=True)
class TextToText(TableTask, TextTask):
    """Rows of a table with an input and a target.

    Attributes:
      input_column: the text that is given.
      target_column: the text that is asked for; a list of texts, where several are right, is
        learnt by its first and scored by all.
      reference_columns: where a row has no `target_column`, the columns of several right texts.
      prefix: put before every input, to tell tasks apart ('summarize: ').
    """

    input_column: str = "input"
    target_column: str = "target"
    reference_columns: tuple[str, ...] = ()
    prefix: str = ""

    def examples(self, data: DataConfig, split: str, labels: Sequence[str] = ()) -> list[Example]:
        """Return {id, text, target, references?} for each row of a split; see `Task.examples`."""

        def example(record: Record) -> Example:
            text = self.prefix + record.text(self.input_column)
            return {"id": record.id, "text": text} | learnt(self._targets(record))

        columns = (self.target_column, *self.reference_columns)
        return self.checked(read_split(data, split, example, columns, task=self))

    def _targets(self, record: Record) -> list[str] | None:
        if not record.graded:
            return None
        several = [name for name in self.reference_columns if name in record.columns]
        if self.target_column in record.columns or not several:
            return texts_of(record, self.target_column)
        return [record.text(name) for name in several]


@dataclasses.dataclass(frozen=True)
class Summarization(TextToText):
    """Rows of a table with a document and its summary, judged by ROUGE (Lin, 2004)."""

    scored_by: tuple[str, ...] = ("rouge_1", "rouge_2", "rouge_l")
    input_column: str = "document"
    target_column: str = "summary"
    prefix: str = "summarize: "


@dataclasses.dataclass(frozen=True)
class DialogSum(Summarization):
    """DialogSum (Chen et al., 2021): everyday dialogues, each test one with three summaries.

    `data.path` is its directory, with train.jsonl, dev.jsonl and test.jsonl (or dialogsum.….jsonl,
    as they are published), or one such file; then `data.valid_path` and `data.test_path` are too.
    """

    input_column: str = "dialogue"
    reference_columns: tuple[str, ...] = ("summary1", "summary2", "summary3")

    defaults: ClassVar[Mapping] = {
        "data": {"split": "file", "valid_path": "dev", "test_path": "test"},
        "train": {"length": 384},
        "objective": {"target_length": 64},
    }

    def examples(self, data: DataConfig, split: str, labels: Sequence[str] = ()) -> list[Example]:
        """Return {id, text, target, references?} for each dialogue; see `Task.examples`."""
        files = ("{}.jsonl", "dialogsum.{}.jsonl")
        return super().examples(in_directory(data, "train", files), split, labels)
