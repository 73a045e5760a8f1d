"""Reading one source: text, JSONL, Parquet or a `datasets` directory, a few documents at a time.

Every refusal names the file and the line, row or byte.
"""

import dataclasses
import json
import os
from collections.abc import Callable, Iterator

from flaxlm import files
from flaxlm.errors import ConfigError, DataError, MissingInput


@dataclasses.dataclass(frozen=True)
class Document:
    """A unit of text; `id` says where it stands: file, then line or row where there are several."""

    id: str
    text: str
    file: str


def read(source, config, progress: Callable[[int], None] | None = None) -> Iterator[Document]:
    """Yield the documents of one `Source` as they stand, in order, cleaned of nothing yet.

    `progress` is called with the number of bytes just read from disk.
    """
    progress = progress or (lambda count: None)
    if source.format == "text":
        yield from _read_text(source, config, progress)
    elif source.format == "jsonl":
        yield from _read_jsonl(source, config, progress)
    else:
        yield from _read_table(source, config, progress)


def _read_text(source, config, progress) -> Iterator[Document]:
    """One document a file, a line or a paragraph (lines between blank ones)."""
    name, unit = source.path, source.document
    held: list[str] = []
    first = 1
    with files.opened(name, progress) as file:
        for number, offset, raw in files.lines(
            file, name, config.max_line_bytes, config.strip_control
        ):
            line = files.decoded(raw, name, number, offset)
            if number == 1:
                line = line.removeprefix("\ufeff")  # the mark of an encoding, not text
            if unit == "line":
                yield Document(f"{name}:{number}", line.rstrip("\r\n"), name)
            elif unit == "paragraph" and not line.strip():
                if held:
                    yield Document(f"{name}:{first}", "".join(held).rstrip("\r\n"), name)
                held = []
            else:
                first = first if held else number
                held.append(line)
    if unit == "paragraph" and held:
        yield Document(f"{name}:{first}", "".join(held).rstrip("\r\n"), name)
    elif unit == "file":
        yield Document(name, "".join(held), name)


def _read_jsonl(source, config, progress) -> Iterator[Document]:
    name, field = source.path, config.field
    with files.opened(name, progress) as file:
        for number, offset, raw in files.lines(file, name, config.max_line_bytes):
            if raw.isspace():
                continue
            line = files.decoded(raw, name, number, offset).removeprefix("\ufeff")
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DataError(
                    f"{name}, line {number} is not valid JSON: {error}; there must be one object "
                    "a line"
                ) from None
            where = f"{name}, line {number}"
            if not isinstance(record, dict):
                raise DataError(f"{where} is not a JSON object but {type(record).__name__}")
            if field not in record:
                raise _no_field(where, field, record)
            yield Document(f"{name}:{number}", _checked(record[field], where, config), name)


def _read_table(source, config, progress) -> Iterator[Document]:
    """Rows of a Parquet file or a `datasets` directory."""
    rows = _parquet if source.format == "parquet" else _datasets
    for number, columns in enumerate(rows(source.path, [config.field], progress)):
        value = columns[config.field]
        text = _checked(value, f"{source.path}, row {number}", config)
        yield Document(f"{source.path}:{number}", text, source.path)


def table_rows(path: str) -> Iterator[dict]:
    """Yield the rows of a Parquet file or a `datasets` directory, {column: value} each."""
    rows = _datasets if os.path.isdir(path) else _parquet
    yield from rows(path, None, lambda count: None)


def _parquet(path, fields, progress) -> Iterator[dict]:
    """Yield the given columns of each row, all of them for None."""
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            _check_fields(path, fields, table.schema_arrow.names)
            size, rows = os.path.getsize(path), max(table.metadata.num_rows, 1)
            for batch in table.iter_batches(batch_size=64, columns=fields):
                progress(size * len(batch) // rows)
                yield from batch.to_pylist()
    except FileNotFoundError:
        raise MissingInput(f"{path} does not exist") from None
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{path} is damaged or not Parquet: {reason}") from None


def _datasets(path, fields, progress) -> Iterator[dict]:
    """Yield the given columns of each row, all of them for None."""
    try:
        import datasets
    except ImportError:
        raise ConfigError(
            f"{path} is a `datasets` directory: pip install datasets, or save it as Parquet"
        ) from None
    try:
        table = datasets.load_from_disk(path)
    except Exception as error:  # the library's errors on damaged directories have no common type
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{path} is not a readable `datasets` directory: {reason}") from None
    _check_fields(path, fields, table.column_names)
    size = sum(entry.stat().st_size for entry in os.scandir(path))
    table = table if fields is None else table.select_columns(fields)
    for batch in table.iter(batch_size=64):
        columns = list(batch.values())
        progress(size * len(columns[0]) // max(len(table), 1))
        for row in zip(*columns, strict=True):
            yield dict(zip(batch, row, strict=True))


def _check_fields(where: str, fields, present) -> None:
    for field in fields or ():
        if field not in present:
            raise _no_field(where, field, present)


def _no_field(where: str, field: str, present) -> DataError:
    return DataError(
        f"{where} has no field {field!r}; set data.field to one of: {', '.join(present)}"
    )


def _checked(value: object, where: str, config) -> str:
    """Return the text of a field; DataError where it is no text."""
    if not isinstance(value, str):
        raise DataError(
            f"{where}: the field {config.field!r} holds {type(value).__name__}, not text; set "
            "data.field to a field of text"
        )
    if "\0" in value and not config.strip_control:
        raise DataError(
            f"{where}: character {value.index(chr(0))} of the field {config.field!r} is NUL; set "
            "data.strip_control=True to drop control characters"
        )
    try:
        value.isascii() or value.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where}: character {error.start} of the field {config.field!r} is an unpaired "
            "surrogate, not Unicode text; write the file again with its original text"
        ) from None
    return value
