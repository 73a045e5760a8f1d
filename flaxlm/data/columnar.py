"""Rows of Parquet files and `datasets` directories, their values as JSON has them where it can.

A date or time is its ISO text, a decimal its number, bytes that are UTF-8 text are that text.
"""

import contextlib
import dataclasses
import datetime
import decimal
import os
import uuid
from collections.abc import Callable, Iterator, Sequence

from flaxlm.errors import ConfigError, DataError, MissingInput

BATCH = 64  # rows in memory at a time


@dataclasses.dataclass(frozen=True)
class Unreadable:
    """Stands for a value that Python cannot hold, such as a date of the year 12000."""

    type: str


def columnar_rows(
    path: str, columns: Sequence[str], progress: Callable[[int], None]
) -> Iterator[dict]:
    """Yield {column: value} of each row.

    Args:
      path: a Parquet file or a `datasets` directory.
      columns: what is read; all columns where these are none, or one of them is not there.
      progress: called with the number of bytes just read from disk.
    """
    for batch in (_datasets if os.path.isdir(path) else _parquet)(path, columns, progress):
        names = batch.schema.names
        for cells in zip(*map(_values, batch.columns), strict=True):
            yield dict(zip(names, cells, strict=True))


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
        raise DataError(
            f"{path} is not a readable `datasets` directory: {_reason(error)}"
        ) from None
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
    return [_value(scalar) for scalar in column]


def _value(scalar):
    try:
        return _plain(scalar.as_py())
    except (ValueError, OverflowError):
        return Unreadable(str(scalar.type))


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
