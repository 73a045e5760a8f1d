"""Reading one source: text or a table, a few documents at a time.

Every refusal names the file and the line, row or byte.
"""

import dataclasses
from collections.abc import Callable, Iterator

from flaxlm import files
from flaxlm.data import tables
from flaxlm.errors import DataError, choose


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
    choose("data.format", source.format, ("text", *tables.TABLES))
    progress = progress or (lambda count: None)
    yield from (_texts if source.format == "text" else _rows)(source, config, progress)


def _texts(source, config, progress) -> Iterator[Document]:
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
                line = line.removeprefix(files.MARK)
                if unit != "file":
                    files.refuse_old_ends(line, name)
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


def _rows(source, config, progress) -> Iterator[Document]:
    """One document a row, the text of its column `data.field`."""
    name, field = source.path, config.field
    for row in tables.rows(
        name, config.max_line_bytes, source.format, columns=[field], progress=progress
    ):
        text = dataclasses.replace(row, keys={field: "data.field"}).string(field)
        if "\0" in text and not config.strip_control:
            raise DataError(
                f"{row.place}: character {text.index(chr(0))} of column {field!r} is NUL; set "
                "data.strip_control=True to drop control characters"
            )
        yield Document(f"{name}:{row.line}", text, name)
