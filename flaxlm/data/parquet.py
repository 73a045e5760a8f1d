"""Parquet files, read a few rows at a time; what a file says of its sizes is not believed.

A page of some kilobytes may unpack to two gigabytes, and one value of a dictionary stand in every
row. So the headers of the pages of each row group are read before its first page is unpacked: a
page may unpack to four times the bytes of a line (data.max_line_bytes), and the rows in memory
together to those of one, or a row.
"""

import contextlib
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple

from flaxlm import files
from flaxlm.errors import DataError, MissingInput, raise_scarce

BATCH = 256  # rows in memory at a time
LISTED, PACKED = 4 << 20, 200  # values in the lists of a row group, and for each byte on disk
PLAIN, DELTAS = 0, 7  # encodings: a text as it is, and by what is other than in the last one
HEADERS = (1 << 12, 1 << 24)  # bytes that a page's header has, and may have


def batches(
    path: str,
    most: int,
    chosen: Callable[[Sequence[str]], list[str]],
    progress: Callable[[int], None],
) -> Iterator[Any]:
    """Yield Arrow batches of the columns that `chosen` returns of all names; DataError on damage.

    `most` are the bytes of a line; `progress` is called with the number of bytes just read.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise DataError(f"{path} is no regular file")
        with pyarrow.parquet.ParquetFile(path, buffer_size=1 << 20, memory_map=False) as table:
            names = chosen(table.schema_arrow.names)
            size, total = os.path.getsize(path), max(table.metadata.num_rows, 1)
            for group in range(table.metadata.num_row_groups):
                rows = _rows_at_once(path, most, table.metadata, group, names)
                for batch in table.iter_batches(rows, [group], names, use_threads=False):
                    progress(size * len(batch) // total)
                    yield batch
    except FileNotFoundError:
        raise MissingInput(f"{path} does not exist") from None
    except (pyarrow.ArrowException, OSError, OverflowError, MemoryError) as error:
        raise_scarce(error)
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise DataError(f"{path} is damaged or not Parquet: {reason}") from None


def _rows_at_once(path: str, most: int, metadata, group: int, names: Sequence[str]) -> int:
    """Return how many rows of a group fit into memory; DataError where its columns are bombs."""
    rows, facts, most = BATCH, metadata.row_group(group), 4 * (most or files.MOST_LINE_BYTES)
    with open(path, "rb") as file:
        for number in range(facts.num_columns):
            column = facts.column(number)
            if column.path_in_schema.partition(".")[0] not in names:
                continue
            place = f"{path}, row group {group + 1}, column {column.path_in_schema!r}"
            starts = [column.dictionary_page_offset, column.data_page_offset]
            start = min((offset for offset in starts if offset), default=0)
            pages = list(_pages(file, start, start + column.total_compressed_size, place))
            largest = max((page.unpacked for page in pages), default=0)
            if largest > most:
                raise DataError(
                    f"{place}: a page unpacks to {largest:,} bytes, and {most:,} are the most; "
                    "write the file with smaller row groups"
                )
            if column.physical_type in ("BYTE_ARRAY", "FIXED_LEN_BYTE_ARRAY"):
                # Each may be the largest one, and stands in memory as Arrow's and as Python's.
                rows = min(rows, max(1, most // 4 // max(largest, 1)))
            if metadata.schema.column(number).max_repetition_level == 0:
                continue
            values = sum(page.values for page in pages)
            if values > max(LISTED, PACKED * column.total_compressed_size):
                raise DataError(f"{place}: {values:,} values in lists, of so few bytes on disk")
            repeated = sum(page.values for page in pages if page.encoding != PLAIN)
            free = max(most // 2, PACKED * column.total_compressed_size)
            if column.physical_type == "BYTE_ARRAY" and repeated * largest > free:
                made = repeated * _widest(file, pages, column, largest)
                if made > free:
                    raise DataError(
                        f"{place}: its lists may repeat a text of a dictionary up to {made:,} "
                        "bytes; write the file without dictionaries (of pyarrow: "
                        "use_dictionary=False), or with smaller row groups"
                    )
    return rows


def _widest(file: BinaryIO, pages: Sequence["Page"], column, largest: int) -> int:
    """Return the bytes of the longest text that the pages of a column can repeat."""
    import pyarrow

    widest, codec = 0, column.compression.lower()
    for page in pages:
        if page.encoding == DELTAS:  # each text begins as the one before it
            return largest
        if page.dictionary:
            file.seek(page.start)
            data = file.read(page.packed)
            if codec != "uncompressed":
                codec = {"lz4": "lz4_raw"}.get(codec, codec)
                data = pyarrow.decompress(data, page.unpacked, codec, asbytes=True)
            at = 0
            while at < len(data):
                length = int.from_bytes(data[at : at + 4], "little")
                widest, at = max(widest, length), at + 4 + length
    return widest


class Page(NamedTuple):
    """Where a page's data lies, and what its header says."""

    start: int
    packed: int
    unpacked: int
    values: int  # none of a dictionary
    encoding: int
    dictionary: bool


def _pages(file: BinaryIO, start: int, end: int, place: str) -> Iterator[Page]:
    """Yield each page, a dictionary's too, between two offsets."""
    while start < end:
        for size in HEADERS:
            file.seek(start)
            header = _Thrift(file.read(size))
            with contextlib.suppress(IndexError, KeyError, TypeError, RecursionError):
                fields = header.struct()
                unpacked, packed = fields[2], fields[3]
                kind = next((number for number in (5, 7, 8) if number in fields), 0)
                values = fields[kind][1] if kind else 0
                encoding = fields[kind][4 if kind == 8 else 2] if kind else PLAIN
                break
        else:
            raise DataError(f"{place}: the header of a page is damaged")
        if min(unpacked, packed, values) < 0:
            raise DataError(f"{place}: the header of a page is damaged")
        start += header.at
        held = values if kind != 7 else 0
        yield Page(start, packed, unpacked, held, encoding, kind == 7)
        start += packed


class _Thrift:
    """As much of Thrift's compact protocol as the header of a page takes."""

    def __init__(self, data: bytes):
        self.data, self.at = data, 0

    def number(self) -> int:
        """Return a varint."""
        value = shift = 0
        while True:
            byte = self.data[self.at]
            self.at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    def struct(self) -> dict[int, Any]:
        """Return {number of a field: its value}."""
        fields: dict[int, Any] = {}
        field = 0
        while head := self.data[self.at]:
            self.at += 1
            field = field + (head >> 4) if head >> 4 else self._signed()
            fields[field] = self._value(head & 15)
        self.at += 1
        return fields

    def _signed(self) -> int:
        value = self.number()
        return (value >> 1) ^ -(value & 1)

    def _value(self, kind: int) -> Any:
        if kind in (1, 2):  # a truth value, which the kind says
            return kind == 1
        if kind in (3, 7):
            self.at += 1 if kind == 3 else 8
            return None
        if kind in (4, 5, 6):
            return self._signed()
        if kind == 8:  # bytes
            length = self.number()
            self.at += length
            return None
        if kind == 12:
            return self.struct()
        raise KeyError(kind)  # no header of a page holds lists or maps
