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
import json
import os
import re
import shlex
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence

from flaxlm import files
from flaxlm.errors import ConfigError, DataError, MissingInput, choose, nearest

# The format of a file whose name ends so.
SUFFIXES = dict.fromkeys((".txt", ".text", ".md", ".py"), "text")
SUFFIXES |= dict.fromkeys((".jsonl", ".ndjson", ".json"), "jsonl")
SUFFIXES |= {".csv": "csv", ".tsv": "tsv", ".parquet": "parquet", ".conllu": "conllu"}
COMPRESSED = (".gz", ".zst")
DELIMITERS = {"csv": ",", "tsv": "\t"}
TABLES = ("jsonl", *DELIMITERS, "parquet", "datasets")
BATCH = 64  # rows of a Parquet file in memory at a time


@dataclasses.dataclass(frozen=True)
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
            value.isascii() or value.encode()
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
        yield from _delimited(path, most, form, header, skipped, progress)
    elif header:
        raise DataError(
            f"task.columns names the columns of CSV and TSV files without a header; {path} is "
            f"{form}, which names its own"
        )
    elif form == "jsonl":
        yield from _json(path, most, progress)
    else:
        read = _datasets if os.path.isdir(path) else _parquet
        records = (
            dict(zip(batch.schema.names, cells, strict=True))
            for batch in read(path, columns, progress or (lambda count: None))
            for cells in zip(*map(_values, batch.columns), strict=True)
        )
        for number, record in enumerate(records, 1):
            yield Row(path, number, record, f"row {number}")


def _json(path: str, most: int, progress) -> Iterator[Row]:
    """Yield the rows of JSON lines, or of one array."""
    lines = files.text_lines(path, most, progress, whole=True)
    first = True
    for number, line in lines:
        text = line.removeprefix(files.MARK).strip()  # it stands where two files were joined
        if first and text.startswith("["):  # an array, which may span lines
            text += "\n" + "".join(following for _, following in lines)
            for row, value in enumerate(loads(text, path, number), 1):
                yield _object(Row(path, row, value, f"row {row}"))
        elif text:
            yield _object(Row(path, number, loads(text, path, number)))
            first = False


def _object(row: Row) -> Row:
    if isinstance(row.columns, dict):
        return row
    raise DataError(
        f"{row.place} is not a JSON object but {type(row.columns).__name__}; each has to look like "
        '{"text": "…", "label": "…"}'
    )


def loads(text: str, path: str, line: int = 1):
    """Return the value of JSON that begins on a line; DataError says where it is wrong, and how."""
    try:
        return json.loads(text)
    except RecursionError:
        wrong = "it is nested too deeply"
    except json.JSONDecodeError as error:
        line += error.lineno - 1
        wrong = _explained(error, path)
    except ValueError as error:  # a number of too many digits
        wrong = str(error)
    raise DataError(f"{path}, line {line} is not JSON: {wrong}") from None


def _explained(error: json.JSONDecodeError, path: str) -> str:
    """Return what is wrong, in the words of who wrote the file."""
    before, behind = error.doc[: error.pos].rstrip(), error.doc[error.pos :].strip()
    closing = re.match(r",?\s*([}\]])", behind)
    if error.msg == "Extra data":
        files.refuse_old_ends(error.doc, path)
        what = "a comma stands" if behind.startswith(",") else f"{behind[:20]!r} stands"
        return (
            f"{what} behind its end; a file holds one object on each line, or one array of objects"
        )
    if closing and (behind[0] == "," or before.endswith(",")):
        return f"a comma stands before the closing {closing[1]}; leave it out"
    if not behind:
        return (
            "it ends within an object; one that spans lines has to be brought onto one "
            f"(jq -c . {shlex.quote(path)} > NEW_FILE), and a file that was cut off be made again"
        )
    return f"{error.msg} at character {error.colno}"


def _delimited(path, most, form, header, skipped, progress) -> Iterator[Row]:
    lines = files.bare_lines(path, most, progress)
    # In TSV a quotation mark is a character like any other (IANA's text/tab-separated-values).
    tabs = ((number, line.split("\t")) for number, line in lines if line)
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
            yield Row(path, number, dict(zip(header, cells, strict=True)))
        else:
            what = "task.columns" if named else "the header"
            wrong = (
                f"{place} has {len(cells)} fields, but {what} names {len(header)} columns: "
                f"{_listed(header)}"
            )
            if skipped is None:
                raise DataError(wrong)
            skipped.append(wrong)


def _csv(path: str, most: int, progress) -> Iterator[tuple[int, list[str]]]:
    """Yield the (first line, fields) of each row that has any."""
    csv.field_size_limit(max(csv.field_size_limit(), most))
    lines = (line for _, line in files.text_lines(path, most, progress))
    reader, line = csv.reader(lines, strict=True), 0
    try:
        for cells in reader:
            if cells:
                yield line + 1, cells
            line = reader.line_num
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


def _parquet(path, columns, progress) -> Iterator:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            columns = _chosen(path, columns, table.schema_arrow.names)
            size, total = os.path.getsize(path), max(table.metadata.num_rows, 1)
            for batch in table.iter_batches(batch_size=BATCH, columns=columns):
                progress(size * len(batch) // total)
                yield batch
    except FileNotFoundError:
        raise MissingInput(f"{path} does not exist") from None
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path} is damaged or not Parquet: {_reason(error)}") from None


def _datasets(path, columns, progress) -> Iterator:
    try:
        import datasets
    except ImportError:
        raise ConfigError(
            f"{path} is a `datasets` directory: pip install datasets, or save it as Parquet"
        ) from None
    try:
        table = datasets.load_from_disk(path)
    except Exception as error:  # the library's errors on damaged directories have no common type
        fault = f"{path} is not a readable `datasets` directory: {_reason(error)}"
        raise DataError(fault) from None
    size, total = sum(entry.stat().st_size for entry in os.scandir(path)), max(len(table), 1)
    table = table.select_columns(_chosen(path, columns, table.column_names))
    for batch in table.with_format("arrow").iter(batch_size=BATCH):
        progress(size * len(batch) // total)
        yield batch


def _reason(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__


def _values(column) -> list:
    with contextlib.suppress(ValueError, OverflowError):  # of one of them
        return [_plain(value) for value in column.to_pylist()]
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
