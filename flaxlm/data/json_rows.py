"""JSON of rows: a line, or an array that may be larger than the memory, element by element."""

import contextlib
import json
import re
import shlex
import sys
from collections.abc import Iterable, Iterator

from flaxlm import encoding, files
from flaxlm.errors import DataError
from flaxlm.untrusted import SMALL, check_depth, check_size, parse_json

SHORT = 8 << 20  # bytes of an array that is read a second time to say where it is wrong
_SPACE = re.compile(r"[ \t\r\n]*")


def elements(path: str, most: int, lines: Iterable[str]) -> Iterator[object]:
    """Yield the elements of a JSON array, whose bracket begins the first of `lines`.

    The text is taken in pieces of SMALL characters; where one ends within an element, it is read
    again with as much again behind it, until it takes in memory the bytes of a line.
    """
    decoder, row, text, comma, begun = json.JSONDecoder(), 0, "", False, False
    most = most or files.MOST_LINE_BYTES
    pieces = (
        line[at : at + SMALL]
        for start, line in enumerate(lines)
        for at in range(int(start == 0), len(line), SMALL)
    )
    while True:
        room = (most - sys.getsizeof(text)) * len(text) // sys.getsizeof(text)  # in characters
        wanted, parts = max(SMALL, min(len(text), room)), []
        while wanted > 0 and (piece := next(pieces, "")):
            parts.append(piece)
            wanted -= len(piece)
        text, ended, at = text + "".join(parts), wanted > 0, 0
        try:
            if len(text) > 3 * SMALL:  # of one element
                check_size(text, most)
            while (at := _SPACE.match(text, at).end()) < len(text):
                if text[at] == "]" and not comma:
                    if text[at + 1 :].strip() or any(piece.strip() for piece in pieces):
                        raise ValueError("something stands behind its end")
                    return
                if begun and not comma:
                    if text[at] != ",":
                        raise ValueError("a comma is missing")
                    at, comma = at + 1, True
                    continue
                value, end = decoder.raw_decode(text, at)
                if end == len(text) and not ended:  # a number may go on
                    break
                at, row, comma, begun = end, row + 1, False, True
                check_depth(value)
                yield value
            if ended:
                raise ValueError("it ends within the array")
        except (ValueError, RecursionError) as error:
            if ended or sys.getsizeof(text) > most or not isinstance(error, json.JSONDecodeError):
                wrong = "it is nested too deeply" if isinstance(error, RecursionError) else error
                refuse_short(path)
                raise DataError(
                    f"{path}, row {row + 1} is not JSON, or too long: {wrong}"
                ) from None
        text = text[at:]


def refuse_short(path: str) -> None:
    """Raise DataError, with the line, where a file that is not large is not JSON."""
    with contextlib.suppress(files.TooLong):
        loads(files.read_text(path, SHORT), path)


def loads(text: str, path: str, line: int = 1, most: int = 0, once: bool = False):
    """Return the value of JSON that begins on a line; DataError says where it is wrong, and how.

    `most` and `once` are as in `parse_json`.
    """
    try:
        return parse_json(text, most, whole=False, once=once)
    except json.JSONDecodeError as error:
        line += error.lineno - 1
        wrong = _explained(error, path)
    except ValueError as error:  # too deep, too many values, a number of too many digits
        wrong = str(error)
    raise DataError(f"{path}, line {line} is not JSON: {wrong}") from None


def _explained(error: json.JSONDecodeError, path: str) -> str:
    """Return what is wrong, in the words of who wrote the file."""
    before, behind = error.doc[: error.pos].rstrip(), error.doc[error.pos :].strip()
    closing = re.match(r",?\s*([}\]])", behind)
    if error.msg == "Extra data":
        encoding.refuse_old_ends(error.doc, path)
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
