"""What others wrote: JSON parsed in bounded memory and depth, text shown without its controls.

And what flaxlm wrote and others may have damaged: a checksum within it tells.
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import stat
import sys
from collections.abc import Iterator
from typing import Any

from flaxlm.errors import DataError, irregular

MOST_JSON = 64 << 20  # bytes of a JSON text, and a quarter of those that its values may take
MOST_NESTED = 200  # brackets within each other; Python's own stack ends at some 900
SMALL = 1 << 20  # characters whose values fit anywhere
_DECODE = json.JSONDecoder().decode  # json.loads takes 0.3 µs more, and a line of a table 2
# Bytes that CPython takes at most for what these begin or part: 184 of a dict with its slot, 56 of
# an empty list, a number or a short string with its slot, a key.
WEIGHTS = {"{": 200, "[": 64, ",": 48, ":": 48}
_HALF = re.compile(r"\\u[dD][89a-fA-F]")  # an escape of half a surrogate pair
_SEAL, _MARK = "checksum", "sha256:"
# C0 and C1 controls but the tab, line and paragraph separators, marks and overrides of direction,
# spaces of no width (but the joiners, which scripts and emoji need), halves of surrogate pairs.
_CONTROL = re.compile(
    "[\0-\x08\n-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff]"
)


def parse_json(
    text: str | bytes, most: int = 0, whole: bool = True, once: bool = False, **hooks
) -> Any:
    """Return the value of JSON text, UTF-8 where it is bytes; ValueError says what is wrong.

    Args:
      text: anything.
      most: bytes that it may have, and a quarter of those that its values may take; MOST_JSON
        where it is 0.
      whole: whether half a surrogate pair, which no file can hold, is wrong anywhere in it; names
        of files that are not UTF-8 have some, so what flaxlm itself wrote may.
      once: whether a key that stands twice in an object is wrong; else the last one holds.
      hooks: of `json.loads`.
    """
    most = most or MOST_JSON
    if len(text) > most:
        raise ValueError(f"it is longer than {most:,} bytes")
    text = text if isinstance(text, str) else text.decode("utf-8-sig")
    if len(text) > SMALL:
        check_size(text, most)
    hooks |= {"object_pairs_hook": _once} if once else {}
    try:
        value = json.loads(text, **hooks) if hooks else _DECODE(text)
        if whole and _HALF.search(text):
            _refuse_halves(value)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if len(text) > 2 * MOST_NESTED and text.count("[") + text.count("{") > MOST_NESTED:
        check_depth(value)
    return value


def _refuse_halves(value: Any) -> None:
    """Raise ValueError where a text, or a key, in a value has half a surrogate pair."""
    if isinstance(value, str):
        value.encode()
    elif isinstance(value, list):
        for inner in value:
            _refuse_halves(inner)
    elif isinstance(value, dict):
        for key, inner in value.items():
            key.encode()
            _refuse_halves(inner)


def _once(pairs: list[tuple[str, Any]]) -> dict:
    values: dict[str, Any] = {}
    for key, value in pairs:
        if key in values:
            raise ValueError(f"{key[:80]!r} stands twice in one object; leave one of them out")
        values[key] = value
    return values


def check_size(text: str, most: int) -> None:
    """Raise ValueError where JSON text and its values may take more than 4 · `most` bytes.

    An escape may make more bytes of each character of its value than the text has.
    """
    wide = 4 if _HALF.search(text) else 2 if "\\u" in text else 1
    size = len(text) * wide + sys.getsizeof(text)
    size += sum(text.count(mark) * weight for mark, weight in WEIGHTS.items())
    if size > 4 * most:
        raise ValueError(
            f"its values may take {size:,} bytes of memory, and {4 * most:,} are the most"
        )


def memory_of(value: Any) -> int:
    """Return about how many bytes a value of JSON takes, with the slot that it stands in."""
    if isinstance(value, str):
        return sys.getsizeof(value) + 8
    if isinstance(value, list | tuple):
        return 64 + sum(map(memory_of, value))
    if isinstance(value, dict):
        return 200 + sum(map(memory_of, value.values()))
    return 40


def check_depth(value: Any) -> None:
    """Raise ValueError where lists and objects are nested deeper than MOST_NESTED."""
    level = [value] if isinstance(value, list | dict) else []
    for _ in range(MOST_NESTED):
        inner = (item.values() if isinstance(item, dict) else item for item in level)
        level = [item for items in inner for item in items if isinstance(item, list | dict)]
        if not level:
            return
    raise ValueError("it is nested too deeply")


def file_bytes(path: str | os.PathLike) -> bytes:
    """Return the bytes of a regular file; OSError of anything else: a pipe would never end."""
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.ENXIO, "it is no regular file", os.fspath(path))  # as of a socket
        return file.read()


def check_replaceable(path: str | os.PathLike) -> None:
    """Raise Unsafe, or IsADirectoryError, where something else than a file would be replaced."""
    with contextlib.suppress(FileNotFoundError):
        mode = os.stat(path).st_mode  # of what a link leads to, as /dev/stdout is one
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(mode) or os.path.realpath(os.path.dirname(path)) == "/dev":
            raise irregular(path)


def checksum(values: dict) -> str:
    """Return the SHA-256 of JSON values in hexadecimal, in whatever order they stand."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def sealed(values: dict) -> dict:
    """Return JSON values with a `checksum` of them, which `unsealed` looks at."""
    return values | {_SEAL: _MARK + checksum(values)[:16]}


def unsealed(values: Any) -> dict:
    """Return what was sealed; ValueError where it is not any more.

    What has no checksum, as of an earlier version or written by hand, is taken as it is.
    """
    if not isinstance(values, dict):
        raise ValueError("it is no object")
    # A flipped bit changes the name of the checksum or its mark, never both.
    seal = {k: v for k, v in values.items() if k == _SEAL or str(v).startswith(_MARK)}
    bare = {k: v for k, v in values.items() if k not in seal}
    if seal and seal != {_SEAL: sealed(bare)[_SEAL]}:
        raise ValueError("it is not what was written: its checksum differs")
    return bare


@contextlib.contextmanager
def panics(what: str) -> Iterator[None]:
    """Make a DataError of the panic of a library in Rust, which is no Exception."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise DataError(f"{what}: {str(error).partition(chr(10))[0]}") from None


def printable(text: object) -> str:
    r"""Return text as one line that a terminal shows and does not obey: controls as \x1b, \u202e.

    Letters of any script, and what joins them, stay as they are.
    """
    return _CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), str(text))
