"""Translation, from line-aligned files or the rows of a table; Multi30k."""

import dataclasses
import functools
import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar

from flaxlm import files
from flaxlm.data.sources import DataConfig
from flaxlm.data.tables import COMPRESSED
from flaxlm.errors import DataError, MissingInput
from flaxlm.metrics.texts import LANGUAGES
from flaxlm.tasks.records import Record, in_directory, read_split, read_table
from flaxlm.tasks.task import Example, TableTask
from flaxlm.tasks.text_task import TextTask, learnt, texts_of


@dataclasses.dataclass(frozen=True)
class Translation(TableTask, TextTask):
    """Texts in two languages, judged by BLEU and chrF.

    A file whose name ends in `.source`, `train.de` or `train.de.gz`, is one of two: line n of
    `train.en` or `train.en.gz` beside it translates its line n. Of any other table `source` and
    `target` are columns; the target may be a list of translations.

    Attributes:
      source, target: the languages, as they stand in the names of the files or of the columns.
      prefix: put before every source text ('translate English to German: ').
      language: of the metrics; '' for `target` if that is one that they know, else any.
    """

    scored_by: tuple[str, ...] = ("bleu", "chrf")
    language: str = ""
    source: str = "source"
    target: str = "target"
    prefix: str = ""

    def __post_init__(self):
        if not self.language and self.target in LANGUAGES:
            object.__setattr__(self, "language", self.target)
        super().__post_init__()

    def examples(self, data: DataConfig, split: str, labels: Sequence[str] = ()) -> list[Example]:
        """Return {id, text, target, references?} for each pair of texts; see `Task.examples`."""

        def example(record: Record) -> Example:
            text = self.prefix + record.text(self.source)
            if record.graded and self.target not in record.columns:
                self._refuse_missing(record)
            right = texts_of(record, self.target) if record.graded else None
            return {"id": record.id, "text": text} | learnt(right)

        rows = functools.partial(self._read, form=data.format)
        return self.checked(read_split(data, split, example, self.target, rows, task=self))

    def _read(self, path: str, most: int, form: str) -> Iterator[Record]:
        """Yield the rows of a table, or of a file and the one beside it, if there is one."""
        beside = self._beside(path)
        if not beside or form not in ("auto", "text"):
            yield from read_table(path, most, form, self.columns)
            return
        other = next(filter(os.path.exists, beside), "")
        if not other:
            for number, line in files.bare_lines(path, most):
                yield Record(path, number, {self.source: line})
            return
        for here, there in itertools.zip_longest(
            files.bare_lines(path, most), files.bare_lines(other, most)
        ):
            if here is None or there is None:
                self._refuse_counts(path, other, most)
            yield Record(path, here[0], {self.source: here[1], self.target: there[1]})

    def _beside(self, path: str) -> list[str]:
        """Return the names that the file of translations may have; none for a table."""
        packed = next((ending for ending in COMPRESSED if path.endswith(ending)), "")
        stem = path.removesuffix(packed)
        if not stem.endswith(f".{self.source}"):
            return []
        name = stem.removesuffix(self.source) + self.target
        return [name + ending for ending in dict.fromkeys([packed, "", *COMPRESSED])]

    def _refuse_missing(self, record: Record) -> None:
        beside = self._beside(record.file)
        if beside:
            raise MissingInput(
                f"{beside[0]} does not exist, where line by line the translations of "
                f"{record.file} should stand (task.source={self.source!r}, "
                f"task.target={self.target!r})"
            )

    @staticmethod
    def _refuse_counts(path: str, other: str, most: int) -> None:
        counts = [sum(1 for _ in files.bare_lines(name, most)) for name in (path, other)]
        raise DataError(
            f"{path} has {counts[0]:,} lines and {other} {counts[1]:,}; line n of one has to be "
            "the translation of line n of the other"
        )


@dataclasses.dataclass(frozen=True)
class Multi30k(Translation):
    """Multi30k (Elliott et al., 2016): captions of pictures in German, English, French, Czech.

    `data.path` is its directory, with train.de.gz, train.en.gz, val.de.gz and so on;
    `data.test_path` says which of its test sets is read.
    """

    source: str = "de"
    target: str = "en"

    defaults: ClassVar[Mapping] = {
        "data": {"split": "file", "valid_path": "val", "test_path": "test_2016_flickr"},
        "train": {"length": 48},
        "objective": {"target_length": 48},
    }

    def examples(self, data: DataConfig, split: str, labels: Sequence[str] = ()) -> list[Example]:
        """Return {id, text, target} for each caption; see `Task.examples`."""
        names = [f"{{}}.{self.source}{ending}" for ending in ("", *COMPRESSED)]
        return super().examples(in_directory(data, "train", names), split, labels)
