"""GLUE (Wang et al., 2019): its tasks from the files of gluebenchmark.com, and submissions to it.

Tables with the columns of the Hugging Face hub's `glue` are read as well.
"""

import dataclasses
import functools
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

from flaxlm import encoding, files
from flaxlm.data import tables
from flaxlm.data.sources import DataConfig
from flaxlm.errors import DataError
from flaxlm.tasks.labels import MOST_DIGITS, find_label, label_ids, label_text, whole_number
from flaxlm.tasks.records import Record, read_split, read_table
from flaxlm.tasks.regression import NumberTask
from flaxlm.tasks.task import Answers, Example, Examples, Labels, LabelTask, Task

NLI = ("entailment", "neutral", "contradiction")
TWO_WAY = ("entailment", "not_entailment")


def _differ(answers: list) -> bool:
    """Return whether right answers of a row contradict: two numbers, or two names."""
    given = {str(answer).strip().casefold() for answer in answers}
    given -= {"", "-", "none", "hidden", "-1", "-1.0"}
    numbers = {text for text in given if re.fullmatch(r"-?\d+(\.\d*)?", text)}
    return len(set(map(float, numbers))) > 1 or len(given - numbers) > 1


@dataclasses.dataclass(frozen=True)
class Glue(Task):
    """What the tasks of GLUE share.

    An example's text, number and right answer may each stand under one of several columns.
    """

    skip_bad_rows: bool = False  # leave out rows with too few or many fields, or no text (QQP)

    folder: ClassVar[str] = ""  # of the task on the site
    part: ClassVar[str] = ""  # what the names of its held-out files end in
    submission: ClassVar[str] = ""  # the site's name of a file of answers; else that of the folder
    texts: ClassVar[tuple[tuple[str, ...], ...]] = (("sentence1",), ("sentence2",))
    gold: ClassVar[tuple[str, ...]] = ("label",)  # the columns that the right answer may stand in
    index: ClassVar[tuple[str, ...]] = ("index", "idx")  # where an example's number may stand
    header: ClassVar[tuple[str, ...]] = ()  # the columns of a file that does not name them
    reported: ClassVar[tuple[str, ...]] = ("accuracy",)  # GLUE's metrics: their mean is the score

    def __init_subclass__(cls):
        cls.submission = vars(cls).get("submission", f"{cls.folder}.tsv")

    def read(self, data: DataConfig, split: str, answer: Callable[[Record], Example]) -> Examples:
        """Return {id, index?, text, text_pair?} and what `answer` reads of each row of a split."""
        skipped: list[str] | None = [] if self.skip_bad_rows else None

        def example(record: Record) -> Example:
            names = [present(record, columns) or columns[0] for columns in self.texts]
            texts = dict(zip(("text", "text_pair"), map(record.text, names), strict=False))
            index = present(record, self.index)
            number = record.columns[index] if index else None
            number = {"index": label_text(number) or str(number)} if index else {}
            return {"id": record.id} | number | texts | answer(record)

        # A file that is all there is may be the test file.
        bare = split == "test" or data.split == "whole"
        rows = functools.partial(self._rows, form=data.format, skipped=skipped, bare=bare)
        examples = read_split(data, split, example, self.gold, rows, task=self)
        if skipped:
            warnings.warn(
                f"task.skip_bad_rows left {len(skipped)} rows of the {split} split out; the "
                f"first: {skipped[0]}",
                stacklevel=1,
            )
        return Examples(examples, examples.read + len(skipped or ()))

    def _rows(
        self, path: str, most: int, form: str, skipped: list[str] | None, bare: bool
    ) -> Iterator[Record]:
        """Yield the rows of a file, of which columns that nobody reads are dropped (MNLI's parses).

        Where it may be `bare`, -1 as the answer of every row is the hub's word for none.
        """
        header = () if _headed(path, form, self.texts[0]) else self.header
        wanted = {"id", *(name for names in (*self.texts, self.gold, self.index) for name in names)}
        records = []
        for record in read_table(path, most, form, header, skipped):
            small = {name: v for name, v in record.columns.items() if name in wanted}
            records.append(dataclasses.replace(record, columns=small))
            if not all(present(records[-1], texts) for texts in self.texts):
                records[-1] = record  # the error will name the columns that are there
        answers = [[r.columns[name] for name in self.gold if name in r.columns] for r in records]
        bare = bare and all(row and {*map(str, row)} <= {"-1", "-1.0"} for row in answers)
        for record, given in zip(records, answers, strict=True):
            names = [present(record, texts) for texts in self.texts]
            blank = all(names) and not all(str(record.columns[name]).strip() for name in names)
            if skipped is not None and blank:
                skipped.append(f"{record.place} has an empty text")
            elif _differ(given):
                raise DataError(
                    f"{record.place}: its columns {' and '.join(self.gold)} are both right answers "
                    f"and differ, {' and '.join(map(repr, given))}; drop one of them"
                )
            else:
                yield dataclasses.replace(record, graded=not bare)

    def site_answer(self, value: Any, labels: Sequence[str]) -> str:
        """Return an answer in the words of the site."""
        return str(self.show(value, labels))

    def files(self, answers: Answers, examples: Examples, labels: Labels = ()) -> dict[str, str]:
        """Return the file that the site scores: `index` and `prediction` of each example."""
        lines = ["index\tprediction"]
        for number, (answer, example) in enumerate(zip(answers, examples, strict=True)):
            index = example.get("index", number)
            lines.append(f"{index}\t{self.site_answer(answer.value, labels)}")
        return {self.submission: "".join(f"{line}\n" for line in lines)}


def present(record: Record, names: Sequence[str]) -> str:
    """Return the first of some columns that a row has, or ''."""
    return next((name for name in names if name in record.columns), "")


def _headed(path: str, form: str, columns: Sequence[str]) -> bool:
    """Return whether the first line of a table names one of some columns."""
    delimiter = tables.DELIMITERS.get(tables.format_of(path) if form == "auto" else form)
    if delimiter is None:
        return True
    with files.opened(path) as file:
        first = file.readline(1 << 16).decode(errors="replace")
    names = first.removeprefix(encoding.MARK).split(delimiter)
    return any(name.strip() in columns for name in names)


@dataclasses.dataclass(frozen=True)
class GlueLabels(Glue, LabelTask):
    """A task of GLUE with labels; `names` are the site's, in the order of the hub's numbers.

    `published` are the names that the hub has where the site has numbers.
    """

    names: ClassVar[tuple[str, ...]] = ("0", "1")

    def __init_subclass__(cls):
        super().__init_subclass__()
        best = {"metric": cls.reported[0], "mode": "max"}
        cls.defaults = {"objective": {"labels": cls.names}, "eval": best}

    def examples(self, data: DataConfig, split: str, labels: Sequence[str] = ()) -> list[Example]:
        """Return {id, index?, text, text_pair?, label} of a split; see `Task.examples`."""
        ids, meant = label_ids(labels), {v: k for k, v in self.published.items()}

        def answer(record: Record) -> Example:
            column = present(record, self.gold) or self.gold[0]
            value = record.columns.get(column)
            value = label_text(value) or str(value)
            if column in record.columns and value not in ids:
                digits = whole_number(value)
                if (
                    digits.isdecimal()
                    and len(digits) < MOST_DIGITS
                    and int(digits) < len(self.names)
                ):
                    value = self.names[int(digits)]
                else:
                    value = meant.get(find_label(value, meant), value)
                record = dataclasses.replace(record, columns=record.columns | {column: value})
            return {"label": record.label(column, ids)}

        return self.read(data, split, answer)


@dataclasses.dataclass(frozen=True)
class Stsb(Glue, NumberTask):
    """How alike two sentences are, from 0 to 5 (Cer et al., 2017)."""

    folder: ClassVar[str] = "STS-B"
    gold: ClassVar[tuple[str, ...]] = ("score", "label")
    reported: ClassVar[tuple[str, ...]] = ("pearson", "spearman")

    low: ClassVar[float] = 0.0
    high: ClassVar[float] = 5.0

    def examples(self, data: DataConfig, split: str, labels: Sequence[str] = ()) -> list[Example]:
        """Return {id, index?, text, text_pair, score} of a split; see `Task.examples`."""

        def answer(record: Record) -> Example:
            column = present(record, self.gold) or self.gold[0]
            return {"score": record.number(column, self.low, self.high)}

        return self.read(data, split, answer)

    def site_answer(self, value: float, labels: Sequence[str]) -> str:
        """Return the number within its bounds, to three places."""
        return f"{min(max(value, self.low), self.high):.3f}"


def _labelled(folder: str, what: str, **facts) -> type[GlueLabels]:
    """Return the task of a folder of the site, with the class attributes that make it differ."""
    return type(folder, (GlueLabels,), {"__doc__": what, "folder": folder} | facts)


ONE = (("sentence",),)
MNLI = {
    "texts": (("sentence1", "premise"), ("sentence2", "hypothesis")),
    "gold": ("gold_label", "label"),
    "names": NLI,
}
GLUE: dict[str, type[Glue]] = {
    "cola": _labelled(
        "CoLA",
        "Whether a sentence is grammatical (Warstadt et al., 2019).",
        texts=ONE,
        header=("source", "label", "mark", "sentence"),
        reported=("matthews",),
        published={"0": "unacceptable", "1": "acceptable"},
    ),
    "sst2": _labelled(
        "SST-2",
        "Whether a film is praised (Socher et al., 2013).",
        texts=ONE,
        published={"0": "negative", "1": "positive"},
    ),
    "mrpc": _labelled(
        "MRPC",
        "Whether two sentences of the news mean the same (Dolan & Brockett, 2005).",
        texts=(("#1 String", "sentence1"), ("#2 String", "sentence2")),
        gold=("Quality", "label"),
        reported=("f1", "accuracy"),
        published={"0": "not_equivalent", "1": "equivalent"},
    ),
    "stsb": Stsb,
    "qqp": _labelled(
        "QQP",
        "Whether two questions of Quora ask the same.",
        texts=(("question1",), ("question2",)),
        gold=("is_duplicate", "label"),
        index=("id", "index", "idx"),
        reported=("f1", "accuracy"),
        published={"0": "not_duplicate", "1": "duplicate"},
    ),
    "mnli": _labelled(
        "MNLI",
        "Whether one sentence follows from another, of the genres that are trained on.\n\n"
        "Williams et al. (2018).",
        part="_matched",
        submission="MNLI-m.tsv",
        **MNLI,
    ),
    "mnli_mm": _labelled(
        "MNLI", "The same, of other genres.", part="_mismatched", submission="MNLI-mm.tsv", **MNLI
    ),
    "qnli": _labelled(
        "QNLI",
        "Whether a sentence answers a question, from SQuAD (Rajpurkar et al., 2016).",
        texts=(("question",), ("sentence",)),
        names=TWO_WAY,
    ),
    "rte": _labelled(
        "RTE",
        "Whether one sentence follows from another (Dagan et al., 2006, and those after it).",
        names=TWO_WAY,
    ),
    "wnli": _labelled(
        "WNLI",
        "Whether a pronoun stands for a word, put as entailment (Levesque et al., 2012).",
        published={"0": "not_entailment", "1": "entailment"},
    ),
}
