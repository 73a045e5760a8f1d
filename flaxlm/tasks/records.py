"""Rows of a supervised data set: JSONL, CSV, TSV and Parquet files, `datasets` directories."""

import csv
import dataclasses
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence

from flaxlm import files
from flaxlm.data.read import table_rows
from flaxlm.data.sources import DataConfig, sources
from flaxlm.data.split import split_by_hash
from flaxlm.errors import DataError, choose, nearest
from flaxlm.tasks.labels import find_label
from flaxlm.tasks.task import SPLITS, Example

DELIMITERS = {".csv": ",", ".tsv": "\t"}
JSON_LINES = (".jsonl", ".json", ".ndjson")
COMPRESSED = (".gz", ".zst")


@dataclasses.dataclass(frozen=True)
class Record:
    """One row: where it stands, and its columns by name.

    `graded` is False in a test split that has no right answers; `where` is its place in a file
    that is not made of lines; `name` is the file's, wherever its folder stands.
    """

    file: str
    line: int
    columns: dict
    graded: bool = True
    where: str = ""
    name: str = ""

    @property
    def id(self) -> str:
        """File and line: the same on every machine that has the file."""
        return f"{self.name or self.file}:{self.line}"

    @property
    def place(self) -> str:
        """How an error names the row."""
        return f"{self.file}, {self.where or f'line {self.line}'}"

    def text(self, column: str) -> str:
        """Return a column's text; DataError where it is absent, no text, or blank."""
        if column not in self.columns:
            raise DataError(
                f"{self.place}: there is no column {column!r}{nearest(column, self.columns)}; "
                f"columns: {', '.join(self.columns)}"
            )
        value = self.columns[column]
        if not isinstance(value, str):
            raise DataError(
                f"{self.place}: column {column!r} holds {json.dumps(value)[:40]}, not a text"
            )
        if not value.strip():
            raise DataError(f"{self.place}: column {column!r} is empty; drop the row or fill it")
        return value

    def gold(self, column: str) -> str | None:
        """Return a column's text, the right answer; None where the split has none."""
        return self.text(column) if self.graded else None

    def label(self, column: str, ids: dict[str, int]) -> int | None:
        """Return the id of a column's label, None where the split has none.

        A number or truth value stands for its JSON text.
        """
        return self._id(self.label_name(column), column, ids) if self.graded else None

    def label_name(self, column: str) -> str:
        """Return a column's label as it is named; a number or truth value by its JSON text."""
        value = self.columns.get(column)
        return json.dumps(value) if isinstance(value, bool | int) else self.text(column)

    def _id(self, name: str, column: str, ids: dict[str, int]) -> int:
        label = find_label(name, ids)
        if label is None:
            raise DataError(
                f"{self.place}: column {column!r} holds the label {name[:60]!r}, which is not in "
                f"objective.labels{nearest(name, ids)}; valid: {', '.join(ids)}"
            )
        return ids[label]

    def labels(self, column: str, ids: dict[str, int], separator: str) -> tuple[bool, ...] | None:
        """Return whether the row has each label, None where the split has none; see `label_names`.

        DataError where one is not in `ids`.
        """
        if not self.graded:
            return None
        found = {self._id(name, column, ids) for name in self.label_names(column, separator)}
        return tuple(index in found for index in ids.values())

    def label_names(self, column: str, separator: str) -> list[str]:
        """Return the labels in a column: a list, or a text with `separator` between them.

        None at all is an empty list or an empty text. DataError where one stands there twice.
        """
        value = self.columns.get(column)
        if isinstance(value, str):
            names = [name.strip() for name in value.split(separator)] if value.strip() else []
        elif isinstance(value, list) and all(isinstance(name, str | int) for name in value):
            names = [name if isinstance(name, str) else json.dumps(name) for name in value]
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
        except ValueError:
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
    example: Callable[[Record], Example],
    gold: str | tuple[str, ...] = "",
    read: Callable[[str, int], Iterator[Record]] | None = None,
) -> list[Example]:
    """Return the examples of a split, in the order of files and rows; every row is checked.

    With `data.split` 'hash' the text decides (both texts, of a pair; an example's `group`, if it
    has one), so that equal ones are never on both sides; with 'tail' the last rows are held out,
    from where a group ends; 'file' reads other files; with 'whole' every split is all there is.

    Args:
      data: where the rows stand.
      split: train, valid or test.
      example: makes an example of a row.
      gold: the column of the right answers, or the columns that they may stand in; a test split
        of which no row has one is one without.
      read: yields the rows of a file; those of a table by default.
    """
    choose("split", split, SPLITS)
    if split not in data.split_names():
        raise DataError(
            f"there is no {split} split: set data.{split}_path with data.split='file', or "
            f"data.{split}_fraction above 0"
        )
    found = list(records(data, split, read))
    golds = {gold} if isinstance(gold, str) else {*gold}
    if (
        split == "test"
        and any(golds)
        and not any(golds & record.columns.keys() for record in found)
    ):
        found = [dataclasses.replace(record, graded=False) for record in found]
    found = [example(record) for record in found]
    total = len(found)
    if data.split == "hash":
        found = [e for e in found if split_by_hash(_hashed(e), data) == split]
    elif data.split == "tail":
        last = int(total * (1 - data.test_fraction))
        first = int(total * (1 - data.test_fraction - data.valid_fraction))
        first, last = _edge(found, first), _edge(found, last)
        borders = {"train": (0, first), "valid": (first, last), "test": (last, total)}
        found = found[slice(*borders[split])]
    if not found:
        raise DataError(
            f"the {split} split is empty: {', '.join(data.paths)} has {total} rows, of which "
            f"data.split={data.split!r} sends none there; use more rows or a larger share"
        )
    return found


def _edge(found: list[Example], at: int) -> int:
    """Return the next border from `at` on that parts no `group`."""
    while 0 < at < len(found) and found[at].get("group", at) == found[at - 1].get("group"):
        at += 1
    return at


def records(
    data: DataConfig,
    split: str,
    read: Callable[[str, int], Iterator[Record]] | None = None,
) -> Iterator[Record]:
    """Yield the rows of the files behind a split; see `read_split`."""
    found = [source.path for source in sources(data, split)]
    root = os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in found])
    for path in found:
        name = os.path.relpath(path, root)
        for record in (read or read_table)(path, data.max_line_bytes):
            yield dataclasses.replace(record, name=name)


def found_labels(data: DataConfig, names: Callable[[Record], list[str]]) -> list[str]:
    """Return the labels that `names` finds in the rows behind the train split, numbers by size."""
    found = {name for record in records(data, "train") for name in names(record)}
    numeric = all(name.isdecimal() for name in found)
    return sorted(found, key=int if numeric else None)


def _hashed(example: Example) -> str:
    if "group" in example:
        return example["group"]
    return "\0".join([example["text"], *filter(None, [example.get("text_pair")])])


def read_table(
    path: str,
    max_line_bytes: int,
    header: Sequence[str] | None = None,
    skipped: list[str] | None = None,
) -> Iterator[Record]:
    """Yield the rows of one file, or of a `datasets` directory; `.gz` and `.zst` are unpacked.

    Args:
      path: of the file.
      max_line_bytes: bound on a line.
      header: names the columns of a CSV or TSV file that does not name them itself.
      skipped: takes what is wrong with rows that have more or fewer fields than the header, which
        are left out; without it, the first of them is refused.
    """
    if os.path.isdir(path) or path.endswith(".parquet"):
        for number, columns in enumerate(table_rows(path)):
            yield Record(path, number, columns)
        return
    name = path
    for ending in COMPRESSED:
        name = name.removesuffix(ending)
    ending = next((e for e in (*DELIMITERS, *JSON_LINES) if name.endswith(e)), None)
    if ending is None:
        raise DataError(
            f"{path}: what kind of table is this? Name it "
            f"{', '.join((*DELIMITERS, *JSON_LINES))}, with {' or '.join(COMPRESSED)} after it "
            "if it is compressed, or .parquet"
        )
    lines = files.text_lines(path, max_line_bytes)
    if ending in DELIMITERS:
        csv.field_size_limit(max(csv.field_size_limit(), max_line_bytes))
        yield from _delimited(lines, path, DELIMITERS[ending], header, skipped)
    else:
        yield from _json_lines(lines, path)


def _json_lines(lines: Iterator[tuple[int, str]], path: str) -> Iterator[Record]:
    for number, line in lines:
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError as error:
            raise DataError(f"{path}, line {number} is not JSON: {error}") from None
        if not isinstance(value, dict):
            raise DataError(
                f"{path}, line {number} is not a JSON object but {type(value).__name__}; each "
                'line has to look like {"text": "…", "label": "…"}'
            )
        yield Record(path, number, value)


def _delimited(
    lines: Iterator[tuple[int, str]],
    path: str,
    delimiter: str,
    header: Sequence[str] | None,
    skipped: list[str] | None,
) -> Iterator[Record]:
    # In TSV a quotation mark is a character like any other (IANA's text/tab-separated-values).
    quoting = csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL
    reader = csv.reader(
        (line for _, line in lines), delimiter=delimiter, quoting=quoting, strict=True
    )
    line = 0
    try:
        for row in reader:
            first, line = line + 1, reader.line_num
            if not row:
                continue
            if header is None:
                # A column without a name (pandas writes its index so) is called by its number.
                header = [name.strip() or str(number) for number, name in enumerate(row)]
                if len(set(header)) < len(header):
                    raise DataError(
                        f"{path}, line {first}: the header must name each column once; it is: "
                        f"{', '.join(header)}"
                    )
                continue
            if len(row) != len(header):
                wrong = (
                    f"{path}, line {first} has {len(row)} fields, but the header names "
                    f"{len(header)} columns: {', '.join(header)}"
                )
                if skipped is None:
                    raise DataError(wrong)
                skipped.append(wrong)
                continue
            yield Record(path, first, dict(zip(header, row, strict=True)))
    except csv.Error as error:
        raise DataError(f"{path}, line {line + 1} cannot be read as a table: {error}") from None
