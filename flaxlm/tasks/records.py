"""Rows of a supervised data set as typed values, and the rows of its splits."""

import collections
import dataclasses
import functools
import math
import os
from collections.abc import Callable, Iterator, Sequence

from flaxlm import files
from flaxlm.data import tables
from flaxlm.data.sources import DataConfig, sources
from flaxlm.data.split import split_by_hash
from flaxlm.errors import DataError, choose
from flaxlm.tasks.labels import MOST_DIGITS, LabelIds, label_text
from flaxlm.tasks.task import SPLITS, Example, Examples, Task

# Yields the rows of a file, given its path and the most bytes of a line.
Reader = Callable[[str, int], Iterator["Record"]]
ROW = 200  # bytes that a record and an example take besides the values
ExampleOf = Callable[["Record"], Example]


@dataclasses.dataclass
class Record(tables.Row):
    """A row of a supervised data set.

    `graded` is False in a test split that has no right answers; `name` is the file's, wherever its
    folder stands.
    """

    graded: bool = True
    name: str = ""

    @property
    def identity(self) -> Example:
        """{row, own_id} of a row with a column `id`: where it stands, and what that says."""
        own = self.columns.get("id")
        own = own if isinstance(own, str) else tables.integer(own)
        return {"row": self.id, "own_id": own} if own is not None and str(own).strip() else {}

    @property
    def id(self) -> str:
        """File, and line or row: the same on every machine that has the file."""
        return f"{self.name or self.file}:{self.line}"

    def text(self, column: str) -> str:
        """Return a column's text; DataError where it is absent, no text, or blank."""
        value = self.string(column)
        if not value.strip():
            raise DataError(f"{self.place}: column {column!r} is empty; drop the row or fill it")
        return value

    def gold(self, column: str) -> str | None:
        """Return a column's text, the right answer; None where the split has none."""
        return self.text(column) if self.graded else None

    def label(self, column: str, ids: LabelIds) -> int | None:
        """Return the id of a column's label, None where the split has none."""
        return self._id(self.label_name(column), column, ids) if self.graded else None

    def label_name(self, column: str) -> str:
        """Return a column's label as it is named; a number or truth value by its JSON text.

        3.0 is named as 3 is; see `tables.integer`.
        """
        value = self.columns.get(column)
        name = None if isinstance(value, str) else label_text(value)
        return self.text(column) if name is None else name

    def _id(self, name: str, column: str, ids: LabelIds) -> int:
        number = ids.find(name, self.place)
        if number is None:
            raise DataError(
                f"{self.place}: column {column!r} holds the label {name[:60]!r}, which is "
                f"{ids.lack(name)}"
            )
        return number

    def labels(self, column: str, ids: LabelIds, separator: str) -> tuple[bool, ...] | None:
        """Return whether the row has each label; None where the split has none."""
        if not self.graded:
            return None
        present = {self._id(name, column, ids) for name in self.label_names(column, separator)}
        return tuple(index in present for index in ids.values())

    def label_names(self, column: str, separator: str) -> list[str]:
        """Return the labels in a column: a list, or a text with `separator` between them.

        None at all is an empty list or an empty text. DataError where one stands there twice.
        """
        value = self.columns.get(column)
        if isinstance(value, str):
            names = [name.strip() for name in value.split(separator)] if value.strip() else []
        elif isinstance(value, list) and None not in map(label_text, value):
            names = list(map(label_text, value))
        else:
            self.text(column)  # names what is wrong with anything else but a list
            raise DataError(f"{self.place}: column {column!r} must be a list of texts")
        for name in names:
            if not name.strip() or names.count(name) > 1:
                raise DataError(
                    f"{self.place}: column {column!r} holds an empty label, or one twice: {names}"
                )
        return names

    def number(self, column: str, low: float = 0.0, high: float = 0.0) -> float | None:
        """Return a column's number, None where the split has none.

        DataError where it is none, not finite, or not in low … high; equal ones are no bounds.
        """
        if not self.graded:
            return None
        value = self.columns.get(column)
        if isinstance(value, bool) or not isinstance(value, int | float):
            value = self.text(column)
        try:
            number = float(value)
        except (ValueError, OverflowError):
            number = math.nan
        if not math.isfinite(number):
            raise DataError(f"{self.place}: column {column!r} holds {value!r}, not a finite number")
        if low != high and not low <= number <= high:
            raise DataError(
                f"{self.place}: column {column!r} holds {number}, which is not in {low} … {high}"
            )
        return number


def read_split(
    data: DataConfig,
    split: str,
    example: ExampleOf,
    gold: str | tuple[str, ...] = "",
    read: Reader | None = None,
    task: Task | None = None,
) -> Examples:
    """Return the examples of a split, in the order of files and rows; every row is checked.

    With `data.split` 'hash' the text decides (both texts, of a pair; an example's `group`, if it
    has one), so that equal ones are never on both sides; with 'tail' the last rows are held out,
    from where a group ends; 'file' reads other files; with 'whole' every split is all there is.

    Args:
      data, split: where the rows stand, and which of them are wanted.
      example: makes an example of a row.
      gold: the column of the right answers, or the columns that they may stand in; a test split
        of which no row has one is one without.
      read: yields the rows of a file; those of a table by default.
      task: whose keys name the columns, for errors and for tables that do not name them.
    """
    choose("split", split, SPLITS)
    if split not in data.split_names():
        raise DataError(data.lacks(split))
    rows = list(records(data, split, read, task))
    golds = {gold} if isinstance(gold, str) else {*gold}
    if split == "test" and any(golds) and not any(golds & row.columns.keys() for row in rows):
        rows = [dataclasses.replace(row, graded=False) for row in rows]
    examples = []
    for row in rows:
        examples.append(example(row) | row.identity)
        for key, value in examples[-1].items():
            tables.refuse_surrogates(value, f"{row.place}: {key}")
    total = len(examples)
    if data.split == "hash":
        examples = [e for e in examples if split_by_hash(_hashed(e), data) == split]
    elif data.split == "tail":
        shares = 1 - data.test_fraction - data.valid_fraction, 1 - data.test_fraction
        borders = [0, *(_edge(examples, int(total * share)) for share in shares), total]
        place = SPLITS.index(split)
        examples = examples[borders[place] : borders[place + 1]]
    if not examples:
        raise DataError(
            f"the {split} split is empty: {', '.join(data.paths)} has {total} rows, of which "
            f"data.split={data.split!r} sends none there; use more rows or a larger share, or "
            "train without evaluation: eval.split='', or evaluate all of them: data.split='whole'"
        )
    return Examples(examples, total)


def _hashed(example: Example) -> str:
    pair = [example["text"], *filter(None, [example.get("text_pair")])]
    return example.get("group", "\0".join(pair))


def _edge(examples: list[Example], at: int) -> int:
    """Return the next border from `at` on that parts no `group`."""
    groups = [example.get("group", number) for number, example in enumerate(examples)]
    while 0 < at < len(groups) and groups[at] == groups[at - 1]:
        at += 1
    return at


def records(
    data: DataConfig, split: str, read: Reader | None = None, task: Task | None = None
) -> Iterator[Record]:
    """Yield the rows of the files behind a split; see `read_split`."""
    header = getattr(task, "columns", ())
    read = read or functools.partial(read_table, form=data.format, header=header)
    paths = [source.path for source in sources(data, split)]
    root = os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in paths])
    for path in paths:
        name, advice = os.path.relpath(path, root), column_advice(task or Task(), data, path)
        held = files.Held(path)
        for record in read(path, data.max_line_bytes):
            held.add(record.columns, ROW)
            record.name, record.advice = name, advice
            yield record


def column_advice(task: Task, data: DataConfig, path: str) -> dict[str, str]:
    """Return what to do where a column that a key of the task names is not in a file."""
    form = tables.format_of(path) if data.format == "auto" else data.format
    headless = form in tables.DELIMITERS and getattr(task, "columns", None) == ()
    more = ", or name all in task.columns=('…', '…') if the first line is a row already" * headless
    bare = getattr(task, "gold", ()) if data.split == "whole" else ()
    advice = dict.fromkeys(bare, "--split=test answers a file without right answers")
    for key in (field.name for field in dataclasses.fields(task)):
        names = getattr(task, key)
        if key.endswith("_columns"):
            advice |= dict.fromkeys(names, f"name others in task.{key}{more}")
        elif key.endswith("_column") or key in ("source", "target"):
            advice[names] = f"set task.{key} to one of them{more}"
    return advice


def count_labels(
    data: DataConfig, example: ExampleOf, read: Reader | None = None, task: Task | None = None
) -> dict[str, int]:
    """Return how often each of an example's `names` stands in the train split, sorted.

    Numbers are sorted by size. The arguments are those of `read_split`.
    """
    rows = read_split(data, "train", example, "", read, task)
    counts = collections.Counter(name for row in rows for name in row["names"])
    short = (isinstance(name, str) and len(name) < MOST_DIGITS for name in counts)
    numeric = all(short) and all(map(str.isdecimal, counts))
    return {name: counts[name] for name in sorted(counts, key=int if numeric else str)}


def read_table(
    path: str,
    max_line_bytes: int = 0,
    form: str = "auto",
    header: Sequence[str] = (),
    skipped: list[str] | None = None,
) -> Iterator[Record]:
    """Return the rows of one file, or of a `datasets` directory; see `tables.rows`."""
    return tables.rows(path, max_line_bytes, form, header, skipped, made=Record)


def in_directory(data: DataConfig, train: str, files: Sequence[str]) -> DataConfig:
    """Return `data` with the files of a published set in the place of its directory.

    `train` is the part that is trained on, `valid_path` and `test_path` are parts, or files
    elsewhere; `files` are the names that a part's file may have, with `{}` for the part.
    """
    root = os.path.expanduser(data.path) if isinstance(data.path, str) else ""
    if not os.path.isdir(root):
        return data

    def place(part: str) -> str:
        """Return where a part stands; of one that does not, where it would."""
        names = [part, *(os.path.join(root, name.format(part)) for name in files)]
        return next(filter(os.path.isfile, names), names[1])

    held_out = ((key, getattr(data, key)) for key in ("valid_path", "test_path"))
    paths = {key: place(part) for key, part in held_out if part}
    return dataclasses.replace(data, path=place(train), **paths)
