"""Rows of a supervised data set: JSONL, CSV, TSV and Parquet files, `datasets` directories."""

import csv
import dataclasses
import json
import os
from collections.abc import Callable, Iterator, Sequence

from flaxlm.data import files
from flaxlm.data.read import table_rows
from flaxlm.data.sources import DataConfig, sources
from flaxlm.data.split import split_by_hash
from flaxlm.errors import DataError, choose, nearest
from flaxlm.tasks.task import SPLITS, Example

DELIMITERS = {".csv": ",", ".tsv": "\t"}
JSON_LINES = (".jsonl", ".json", ".ndjson")
COMPRESSED = (".gz", ".zst")


@dataclasses.dataclass(frozen=True)
class Record:
    """One row: where it stands, and its columns by name.

    `graded` is False in a test split that has no right answers.
    """

    file: str
    line: int
    columns: dict
    graded: bool = True

    @property
    def id(self) -> str:
        """File and line."""
        return f"{self.file}:{self.line}"

    @property
    def place(self) -> str:
        """How an error names the row."""
        return f"{self.file}, line {self.line}"

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
        if not self.graded:
            return None
        value = self.columns.get(column)
        named = json.dumps(value) if isinstance(value, bool | int) else self.text(column)
        if named not in ids:
            raise DataError(
                f"{self.place}: column {column!r} holds the label {named!r}, which is not in "
                f"objective.labels{nearest(named, ids)}; valid: {', '.join(ids)}"
            )
        return ids[named]


def read_split(
    data: DataConfig,
    split: str,
    example: Callable[[Record], Example],
    gold: str = "",
    read: Callable[[str, int], Iterator[Record]] | None = None,
) -> list[Example]:
    """Return the examples of a split, in the order of files and rows; every row is checked.

    With `data.split` 'hash' the text decides (both texts, of a pair), so that equal ones are
    never on both sides; with 'tail' the last rows are held out; 'file' reads other files; with
    'whole' every split is all there is.

    Args:
      data: where the rows stand.
      split: train, valid or test.
      example: makes an example of a row.
      gold: the column of the right answers; a test split of which no row has it is one without.
      read: yields the rows of a file; those of a table by default.
    """
    choose("split", split, SPLITS)
    if split not in data.split_names():
        raise DataError(
            f"there is no {split} split: set data.{split}_path with data.split='file', or "
            f"data.{split}_fraction above 0"
        )
    read = read or read_table
    found = [
        record
        for source in sources(data, split)
        for record in read(source.path, data.max_line_bytes)
    ]
    if split == "test" and gold and not any(gold in record.columns for record in found):
        found = [dataclasses.replace(record, graded=False) for record in found]
    found = [example(record) for record in found]
    total = len(found)
    if data.split == "hash":
        found = [e for e in found if split_by_hash(_hashed(e), data) == split]
    elif data.split == "tail":
        last = int(total * (1 - data.test_fraction))
        first = int(total * (1 - data.test_fraction - data.valid_fraction))
        borders = {"train": (0, first), "valid": (first, last), "test": (last, total)}
        found = found[slice(*borders[split])]
    if not found:
        raise DataError(
            f"the {split} split is empty: {', '.join(data.paths)} has {total} rows, of which "
            f"data.split={data.split!r} sends none there; use more rows or a larger share"
        )
    return found


def _hashed(example: Example) -> str:
    return "\0".join([example["text"], *filter(None, [example.get("text_pair")])])


def read_table(
    path: str, max_line_bytes: int, header: Sequence[str] | None = None
) -> Iterator[Record]:
    """Yield the rows of one file, or of a `datasets` directory; `.gz` and `.zst` are unpacked.

    `header` names the columns of a CSV or TSV file that does not name them itself.
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
    with files.opened(path) as file:
        lines = _lines(file, path, max_line_bytes)
        if ending in DELIMITERS:
            csv.field_size_limit(max(csv.field_size_limit(), max_line_bytes))
            yield from _delimited(lines, path, DELIMITERS[ending], header)
        else:
            yield from _json_lines(lines, path)


def _lines(file, path: str, most: int) -> Iterator[tuple[int, str]]:
    for number, offset, line in files.lines(file, path, most):
        text = files.decoded(line, path, number, offset)
        yield number, text.removeprefix("\ufeff") if number == 1 else text


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
    lines: Iterator[tuple[int, str]], path: str, delimiter: str, header: Sequence[str] | None
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
                raise DataError(
                    f"{path}, line {first} has {len(row)} fields, but the header names "
                    f"{len(header)} columns: {', '.join(header)}"
                )
            yield Record(path, first, dict(zip(header, row, strict=True)))
    except csv.Error as error:
        raise DataError(f"{path}, line {line + 1} cannot be read as a table: {error}") from None
