"""Rows of tables: JSON lines, JSON arrays, CSV, TSV, Parquet, `datasets` directories.

Every refusal names the file and the line, or the row where a file is not made of lines; both are
counted from 1. Values are those that JSON has where it can: of a Parquet file, a date or time is
its ISO text, a decimal its number, bytes that are UTF-8 text are that text.
"""

import contextlib
import csv
import dataclasses
import datetime
import decimal
import functools
import glob
import itertools
import json
import os
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence

from flaxlm import encoding, files
from flaxlm.data import arrow, json_rows, parquet
from flaxlm.errors import ConfigError, DataError, choose, nearest, raise_scarce

# The format of a file whose name ends so.
SUFFIXES = dict.fromkeys((".txt", ".text", ".md", ".py"), "text")
SUFFIXES |= dict.fromkeys((".jsonl", ".ndjson", ".json"), "jsonl")
SUFFIXES |= {".csv": "csv", ".tsv": "tsv", ".parquet": "parquet", ".conllu": "conllu"}
COMPRESSED = (".gz", ".zst")
DELIMITERS = {"csv": ",", "tsv": "\t"}
TABLES = ("jsonl", *DELIMITERS, "parquet", "datasets")


# What a Parquet file has as JSON has it.
_PLAIN = {str, int, float, bool, type(None)}


@dataclasses.dataclass  # not frozen, for it is made once a row, and that takes twice the time
class Row:
    """One row: where it stands, and its columns by name.

    `line` is the number of its line, or that of the row in a file that is not made of lines, where
    `where` says so; `advice` is what to do where a column is not there, by column.
    """

    file: str
    line: int
    columns: dict
    where: str = ""
    advice: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def place(self) -> str:
        """How an error names the row."""
        return f"{self.file}, {self.where or f'line {self.line}'}"

    def string(self, column: str) -> str:
        """Return a column's text, which may be empty; DataError where it is absent or no text."""
        if column not in self.columns:
            advice = self.advice.get(column, "")
            raise DataError(
                f"{self.place}: there is no column {column!r}{nearest(column, self.columns)}; "
                f"columns: {_listed(self.columns)}{'; ' * bool(advice)}{advice}"
            )
        value = self.columns[column]
        if not isinstance(value, str):
            raise DataError(f"{self.place}: column {column!r} holds {shown(value)}, not a text")
        if not value.isascii():
            refuse_surrogates(value, f"{self.place}: column {column!r}")
        return value


@dataclasses.dataclass(frozen=True)
class Unreadable:
    """Stands for a value that Python cannot hold, such as a date of the year 12000."""

    type: str


def integer(value: object) -> int | None:
    """Return a whole number, None of anything else.

    3.0 is one as well: so the numbers of a column are written in which one is missing.
    """
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def shown(value: object) -> str:
    """Return what an error says of a value, whatever it is."""
    if isinstance(value, bytes):
        return f"{len(value):,} bytes"
    if isinstance(value, Unreadable):
        return f"a value of type {value.type} that cannot be read"
    try:
        text = json.dumps(value, default=shown)
    except (TypeError, ValueError, RecursionError):
        return type(value).__name__
    return text if len(text) <= 60 else f"{text[:60]}…"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(name.encode(errors="backslashreplace").decode() for name in names)


def refuse_surrogates(value: object, place: str) -> None:
    """Raise DataError if a text in `value` holds half of a surrogate pair: no file can hold it."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"{place}: character {error.start} is an unpaired surrogate, not Unicode text; "
                "write the file again with its original text"
            ) from None
    elif isinstance(value, list | tuple | dict):
        for item in value.values() if isinstance(value, dict) else value:
            refuse_surrogates(item, place)


def stem_of(path: str) -> str:
    """Return a file's name without the ending that says how it is compressed."""
    return os.path.splitext(path)[0] if path.endswith(COMPRESSED) else path


def format_of(path: str) -> str:
    """Return the format that a file's name says, '' where it says none."""
    if os.path.isdir(path):
        return "datasets"
    return SUFFIXES.get(os.path.splitext(stem_of(path))[1], "")


def rows(
    path: str,
    most: int,
    form: str = "auto",
    header: Sequence[str] = (),
    skipped: list[str] | None = None,
    columns: Sequence[str] = (),
    progress: Callable[[int], None] | None = None,
    made: type[Row] = Row,
) -> Iterator[Row]:
    """Yield the rows of one file, or of a `datasets` directory; `.gz` and `.zst` are unpacked.

    Args:
      path: of the file.
      most: bytes of a line; see `files.text_lines`.
      form: `auto`, by the ending of the name, or one of `TABLES`.
      header: names the columns of a CSV or TSV file that does not name them itself.
      skipped: takes what is wrong with rows that have more or fewer fields than the header, which
        are left out; without it, the first of them is refused.
      columns: those read of a Parquet file; all where these are none, or one is not there.
      progress: called with the number of bytes just read from disk.
      made: what each row is made to.
    """
    choose("data.format", form, ("auto", *TABLES))
    form = format_of(path) if form == "auto" else form
    if form not in TABLES:
        endings = ", ".join(ending for ending, known in SUFFIXES.items() if known in TABLES)
        key = f"Set data.format to one of {', '.join(TABLES)}, or let" if most else "Let"
        raise DataError(
            f"{path}: what kind of table is this? {key} its name end in {endings}, and "
            f"{' or '.join(COMPRESSED)} if it is compressed"
        )
    if form in DELIMITERS:
        for number, record in _delimited(path, most, form, header, skipped, progress):
            yield made(path, number, record)
    elif header:
        raise DataError(
            f"task.columns names the columns of CSV and TSV files without a header; {path} is "
            f"{form}, which names its own"
        )
    elif form == "jsonl":
        for number, record, where in _json(path, most, progress):
            if not isinstance(record, dict):
                raise DataError(
                    f"{made(path, number, record, where).place} is not a JSON object but "
                    f'{type(record).__name__}; each has to look like {{"text": "…", "label": "…"}}'
                )
            yield made(path, number, record, where)
    else:
        read, number = _datasets if os.path.isdir(path) else _parquet, 0
        for batch in read(path, most, columns, progress or (lambda count: None)):
            names = batch.schema.names
            for cells in zip(*map(_values, batch.columns), strict=True):
                number += 1
                yield made(path, number, dict(zip(names, cells, strict=True)), f"row {number}")


def _json(path: str, most: int, progress) -> Iterator[tuple[int, object, str]]:
    """Yield (number, value, what `Row.where` is) of JSON lines, or of the rows of one array."""
    lines = files.text_lines(path, most, progress, whole=True, ends=False)
    first = True
    for number, line in lines:
        text = line.removeprefix(encoding.MARK).strip()  # it stands where two files were joined
        if first and text.startswith("["):  # an array, which may span lines
            others = itertools.chain.from_iterable(("\n", line) for _, line in lines)
            whole = itertools.chain([text], others)
            for row, value in enumerate(json_rows.elements(path, most, whole), 1):
                if not isinstance(value, dict):
                    json_rows.refuse_short(path)
                yield row, value, f"row {row}"
        elif text:
            # A column named twice stands so in every row; asked of all it takes twice the time.
            yield number, json_rows.loads(text, path, number, most, once=first), ""
            first = False


def _delimited(path, most, form, header, skipped, progress) -> Iterator[tuple[int, dict]]:
    lines = files.bare_lines(path, most, progress)
    # In TSV a quotation mark is a character like any other (IANA's text/tab-separated-values).
    tabs = ((number, _split(line, path, number, most)) for number, line in lines if line)
    named, header = bool(header), list(header)
    for number, cells in tabs if form == "tsv" else _csv(path, most, progress):
        place = f"{path}, line {number}"
        if not header:
            # A column without a name (pandas writes its index so) is called by its number.
            header = [name.strip() or str(index) for index, name in enumerate(cells)]
            if len(set(header)) < len(header):
                raise DataError(
                    f"{place}: the header must name each column once; it is: {_listed(header)}"
                )
        elif named and cells == header:
            raise DataError(f"{place} names the columns itself; leave task.columns out")
        elif len(cells) == len(header):
            yield number, dict(zip(header, cells, strict=True))
        else:
            what = "task.columns" if named else "the header"
            wrong = (
                f"{place} has {len(cells)} fields, but {what} names {len(header)} columns: "
                f"{_listed(header)}"
            )
            if skipped is None:
                raise DataError(wrong)
            skipped.append(wrong)


def _split(line: str, path: str, number: int, most: int) -> list[str]:
    _refuse_row(len(line), line.count("\t"), f"{path}, line {number}", most)
    return line.split("\t")


def _refuse_row(size: int, fields: int, place: str, most: int) -> None:
    """Raise DataError where a row of so many bytes in memory, and fields, would fill it.

    A field takes 60 bytes besides its text, a row at most four times the bytes of a line.
    """
    most = most or files.MOST_LINE_BYTES
    if size > most or size + 60 * fields > 4 * most:
        raise DataError(
            f"{place}: what takes {size:,} bytes and has {fields:,} fields is no row of a table"
        )


def _csv(path: str, most: int, progress) -> Iterator[tuple[int, list[str]]]:
    """Yield the (first line, fields) of each row that has any."""
    csv.field_size_limit(max(csv.field_size_limit(), most))
    size = fields = line = 0  # of the row, and the line before it

    def lines() -> Iterator[str]:
        nonlocal size, fields
        for _, text in files.text_lines(path, most, progress):
            # A cell is read into four bytes a character, and more of them the longer it is.
            size += 2 * len(text) if text.isascii() else max(2 * len(text), sys.getsizeof(text))
            fields += text.count(",")
            _refuse_row(size, fields, f"{path}, line {line + 1}", most)
            yield text

    reader = csv.reader(lines(), strict=True)
    try:
        for cells in reader:
            if cells:
                yield line + 1, cells
            line, size, fields = reader.line_num, 0, 0
    except csv.Error as error:
        wrong = str(error)
        if wrong.startswith("new-line"):
            wrong = "a carriage return stands in a field without quotation marks; leave it out"
        elif wrong == "unexpected end of data":
            wrong = "a quotation mark opens a field and none closes it"
        raise DataError(f"{path}, line {line + 1} cannot be read as a table: {wrong}") from None


def _chosen(path: str, columns: Sequence[str], names: Sequence[str]) -> list[str]:
    if len(set(names)) < len(names):
        raise DataError(f"{path} must name each column once; it has: {', '.join(names)}")
    return list(columns if columns and set(columns) <= set(names) else names)


def _parquet(path, most, columns, progress) -> Iterator:
    return parquet.batches(path, most, functools.partial(_chosen, path, columns), progress)


def _datasets(path, most, columns, progress) -> Iterator:
    try:
        import datasets
    except ImportError:
        raise ConfigError(
            f"{path} is a `datasets` directory: pip install datasets, or save it as Parquet"
        ) from None
    try:
        for name in glob.glob(os.path.join(glob.escape(path), "*.arrow")):
            arrow.check_stream(name)
        table = datasets.load_from_disk(path)
    except DataError:
        raise
    except Exception as error:  # the library's errors on damaged directories have no common type
        raise_scarce(error)
        fault = f"{path} is not a readable `datasets` directory: {_reason(error)}"
        raise DataError(fault) from None
    size, total = sum(entry.stat().st_size for entry in os.scandir(path)), max(len(table), 1)
    table = table.select_columns(_chosen(path, columns, table.column_names))
    for batch in table.with_format("arrow").iter(batch_size=parquet.BATCH):
        progress(size * len(batch) // total)
        yield from arrow.parts(batch)


def _reason(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__


def _values(column) -> list:
    with contextlib.suppress(ValueError, OverflowError):  # of one of them
        values = column.to_pylist()
        return values if _PLAIN.issuperset(map(type, values)) else list(map(_plain, values))
    values: list = []
    for scalar in column:
        try:
            values.append(_plain(scalar.as_py()))
        except (ValueError, OverflowError):
            values.append(Unreadable(str(scalar.type)))
    return values


def _plain(value):
    """Return a value as JSON has it; bytes that are no text, and what is unknown, as they are."""
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, decimal.Decimal):
        return int(value) if value == int(value) else float(value)
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, datetime.timedelta | uuid.UUID):
        return str(value)
    if isinstance(value, bytes):
        with contextlib.suppress(UnicodeDecodeError):
            text = value.decode()
            if all(character >= " " or character in "\t\r\n" for character in text):
                return text
    return value
