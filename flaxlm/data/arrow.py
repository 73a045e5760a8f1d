"""Arrow files of `datasets` directories that unpack to more than they hold, and large tables."""

import struct
from typing import Any

from flaxlm.errors import DataError

BATCH = 64 << 20  # bytes that are made Python's at a time
# Of the tables in a message's header: its kind, the header of that kind, and of that the data of a
# dictionary and what a batch of rows is compressed with.
KIND, HEADER, COMPRESSION = 1, 2, 3
SCHEMA, ROWS = 1, 3


def check_stream(path: str) -> None:
    """Raise DataError where a file of a `datasets` directory unpacks to more than its bytes.

    The library writes neither compressed buffers nor dictionaries, and unpacks both at once.
    """
    import pyarrow

    with pyarrow.memory_map(path) as source:
        for message in pyarrow.ipc.MessageReader.open_stream(source):
            kind, compressed = _header(message.metadata.to_pybytes())
            if kind not in (SCHEMA, ROWS) or compressed:
                raise DataError(
                    f"{path} is packed within, as the `datasets` library writes none; save it "
                    "again with that library, or as Parquet"
                )
        source.seek(0)
        for field in pyarrow.ipc.open_stream(source).schema:
            if "_view" in str(field.type) or "run_end" in str(field.type):
                raise DataError(
                    f"{path}: column {field.name!r} is of type {field.type}, which may unpack to "
                    "any size; save it as text or lists"
                )


def _header(data: bytes) -> tuple[int, bool]:
    """Return the kind of a message, a FlatBuffer, and whether its rows are compressed."""

    def field(table: int, number: int) -> int:
        """Return where a field of a table lies, 0 where it is not there."""
        fields = table - struct.unpack_from("<i", data, table)[0]
        slot = 4 + 2 * number
        there = slot < struct.unpack_from("<H", data, fields)[0]
        offset = struct.unpack_from("<H", data, fields + slot)[0] if there else 0
        return table + offset if offset else 0

    def target(place: int) -> int:
        return place + struct.unpack_from("<I", data, place)[0]

    message = target(0)
    kind = data[field(message, KIND)]
    return kind, kind == ROWS and field(target(field(message, HEADER)), COMPRESSION) > 0


def parts(table: Any) -> Any:
    """Yield a table of rows in slices of at most BATCH bytes, or of a row."""
    if table.nbytes <= BATCH or len(table) == 1:
        yield table
    else:
        for half in (table.slice(0, len(table) // 2), table.slice(len(table) // 2)):
            yield from parts(half)
