"""From one text to another: rows of one's own, summaries, translations; DialogSum, Multi30k."""

import dataclasses
import functools
import itertools
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

from flaxlm import files
from flaxlm.data.sources import DataConfig
from flaxlm.data.tables import COMPRESSED
from flaxlm.errors import ConfigError, DataError, MissingInput, choose
from flaxlm.metrics import texts
from flaxlm.metrics.measure import Measure
from flaxlm.tasks.records import Record, in_directory, read_split, read_table
from flaxlm.tasks.task import Answer, Example, Examples, TableTask, Task, check_count, values_of

References = str | list[str]


@dataclasses.dataclass(frozen=True)
class TextTask(Task):
    """A text for each example, judged by one reference text or by several.

    An example's `target` is what is learnt; where there are several right texts, `references` has
    them all, the target first.

    Attributes:
      scored_by: the metrics: rouge_1, rouge_2, rouge_l, exact_match, f1, bleu, chrf.
    """

    scored_by: tuple[str, ...] = ("rouge_l", "exact_match")
    language: str = "en"  # how texts fall into words for them: `en`, `zh`, or '' for any other

    objective: ClassVar[str] = "text_to_text"

    def __post_init__(self):
        choose("task.language", self.language, texts.LANGUAGES)
        valid = (*texts.TEXT_SCORES, *texts.CORPUS_SCORES)
        for name in self.scored_by:
            choose("task.scored_by", name, valid)
        if not self.scored_by:
            raise ConfigError(f"task.scored_by is empty; name some of {', '.join(valid)}")

    def checked(self, examples: Examples) -> Examples:
        """Return the examples, if the metrics can read their references; DataError if not."""
        if known := [gold for gold in self.golds(examples) if gold is not None]:
            texts.check_language(known, self.language)
        return examples

    def golds(self, examples: Sequence[Example]) -> list[References | None]:
        """Return the reference text of each example, a list of them where there are several."""
        return [example.get("references") or example["target"] for example in examples]

    def perfect(self, golds: Sequence[References]) -> list[Answer]:
        """Return each example's first reference."""
        return [Answer(gold if isinstance(gold, str) else gold[0], 0.0) for gold in golds]

    def postprocess(self, outputs: Mapping[str, Any], examples: Sequence[Example]) -> list[Answer]:
        """Return the generated texts; see `written`."""
        return written(outputs, examples)

    def measures(self, answers: Sequence[Answer], golds: Sequence[References]) -> list[Measure]:
        """Return the measure of each of `scored_by`, over all references."""
        return texts.text_measures(values_of(answers), golds, self.scored_by, self.language)

    def mistake(self, answer: Answer, gold: References) -> float:
        """Return 1 − ROUGE-L in words of any language, 0 for a reference itself."""
        pair = [answer.value], [gold]
        same = texts.exact_match(*pair)[0]
        return 0.0 if same else 1.0 - float(texts.TEXT_SCORES["rouge_l"](*pair, "")[0])


def written(outputs: Mapping[str, Any], examples: Sequence[Example]) -> list[Answer]:
    """Return outputs['text'] [N], the generated texts, without white space around them.

    The score is their log-likelihood in nats, where outputs have it.
    """
    check_count(outputs["text"], examples)
    sure = outputs.get("log_likelihood", [math.nan] * len(examples))
    pairs = zip(outputs["text"], sure, strict=True)
    return [Answer(str(text).strip(), float(score)) for text, score in pairs]


def texts_of(record: Record, column: str) -> list[str] | None:
    """Return the texts of a column with one or a list of them; None where the split has none."""
    value = record.columns.get(column)
    if not record.graded:
        return None
    if not isinstance(value, list):
        return [record.text(column)]
    if not value:
        raise DataError(f"{record.place}: column {column!r} is an empty list; drop the row")
    return [dataclasses.replace(record, columns={column: one}).text(column) for one in value]


def learnt(right: Sequence[str] | None) -> Example:
    """Return {target, references?} of an example's right texts; None: they are not known."""
    if right is None:
        return {"target": None}
    return {"target": right[0]} | ({"references": list(right)} if len(right) > 1 else {})


@dataclasses.dataclass(frozen=True)
class TextToText(TableTask, TextTask):
    """Rows of a table with an input and a target."""

    input_column: str = "input"  # the text that is given
    target_column: str = "target"  # what is asked for; of a list the first is learnt, all count
    reference_columns: tuple[str, ...] = ()  # several right texts, where there is no target
    prefix: str = ""  # put before every input, to tell tasks apart ('summarize: ')

    def examples(self, data: DataConfig, split: str, labels: Sequence[str] = ()) -> list[Example]:
        """Return {id, text, target, references?} for each row of a split; see `Task.examples`."""

        def example(record: Record) -> Example:
            text = self.prefix + record.text(self.input_column)
            several = [name for name in self.reference_columns if name in record.columns]
            if several and self.target_column not in record.columns:
                right = [record.text(name) for name in several]
            else:
                right = texts_of(record, self.target_column)
            return {"id": record.id, "text": text} | learnt(right)

        columns = (self.target_column, *self.reference_columns)
        return self.checked(read_split(data, split, example, columns, task=self))


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
        names = ("{}.jsonl", "dialogsum.{}.jsonl")
        return super().examples(in_directory(data, "train", names), split, labels)


@dataclasses.dataclass(frozen=True)
class Translation(TableTask, TextTask):
    """Texts in two languages, judged by BLEU and chrF.

    A file whose name ends in `.source`, `train.de` or `train.de.gz`, is one of two: line n of
    `train.en` or `train.en.gz` beside it translates its line n. Of any other table `source` and
    `target` are columns; the target may be a list of translations.
    """

    scored_by: tuple[str, ...] = ("bleu", "chrf")
    language: str = ""  # of the metrics; '' for `target` if that is one that they know, else any
    source: str = "source"  # language in the names of files or columns
    target: str = "target"  # likewise
    prefix: str = ""  # put before every source text ('translate English to German: ')

    def __post_init__(self):
        if not self.language and self.target in texts.LANGUAGES:
            object.__setattr__(self, "language", self.target)
        super().__post_init__()

    def examples(self, data: DataConfig, split: str, labels: Sequence[str] = ()) -> list[Example]:
        """Return {id, text, target, references?} for each pair of texts; see `Task.examples`."""

        def example(record: Record) -> Example:
            text = self.prefix + record.text(self.source)
            beside = self._beside(record.file)
            if record.graded and self.target not in record.columns and beside:
                raise MissingInput(
                    f"{beside[0]} does not exist, where line by line the translations of "
                    f"{record.file} should stand (task.source={self.source!r}, "
                    f"task.target={self.target!r})"
                )
            return {"id": record.id, "text": text} | learnt(texts_of(record, self.target))

        rows = functools.partial(self._read, form=data.format)
        return self.checked(read_split(data, split, example, self.target, rows, task=self))

    def _read(self, path: str, most: int, form: str) -> Iterator[Record]:
        """Yield the rows of a table, or of a file and the one beside it, if there is one."""
        beside = self._beside(path)
        if not beside or form not in ("auto", "text"):
            yield from read_table(path, most, form, self.columns)
            return
        if self.columns:
            raise DataError(f"task.columns names the columns of a table, and {path} is text")
        other = next(filter(os.path.exists, beside), "")
        lines = list(files.bare_lines(path, most))
        translations = [line for _, line in files.bare_lines(other, most)] if other else []
        if other and len(lines) != len(translations):
            raise DataError(
                f"{path} has {len(lines):,} lines and {other} {len(translations):,}; line n of one "
                "has to be the translation of line n of the other"
            )
        for (number, line), translation in itertools.zip_longest(lines, translations):
            target = {self.target: translation} if other else {}
            yield Record(path, number, {self.source: line} | target)

    def _beside(self, path: str) -> list[str]:
        """Return the names that the file of translations may have; none for a table."""
        packed = next((ending for ending in COMPRESSED if path.endswith(ending)), "")
        stem = path.removesuffix(packed)
        if not stem.endswith(f".{self.source}"):
            return []
        name = stem.removesuffix(self.source) + self.target
        return [name + ending for ending in dict.fromkeys([packed, "", *COMPRESSED])]


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
