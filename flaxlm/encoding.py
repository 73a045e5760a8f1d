"""From bytes to text, which is UTF-8: what else they look like, and how to convert it, is said."""

import codecs
import os
import re
import shlex

from flaxlm.errors import DataError

MARK = "\ufeff"  # of an encoding, at the beginning of a file: no text
HEAD = 4096  # bytes that tell the encoding
# Of UTF-32 before UTF-16, which in one byte order begins alike.
WIDE_MARKS = ((codecs.BOM_UTF32_LE, "UTF-32"), (codecs.BOM_UTF32_BE, "UTF-32"))
WIDE_MARKS += ((codecs.BOM_UTF16_LE, "UTF-16"), (codecs.BOM_UTF16_BE, "UTF-16"))
WIDE = ("UTF-32LE", "UTF-32BE", "UTF-16LE", "UTF-16BE")

# In UTF-8 the first bytes of characters beyond U+FFFF, and beyond U+00FF; all bytes but the first.
_FOUR, _TWO = re.compile(rb"[\xf0-\xf4]"), re.compile(rb"[\xc4-\xf4]")
_LATER = bytes(range(0x80, 0xC0))


def refuse_wide(head: bytes, name: str) -> None:
    """Raise DataError if a file that begins with `head` is UTF-16 or UTF-32, marked or not."""
    head = head[:HEAD]
    encoding = next((encoding for mark, encoding in WIDE_MARKS if head.startswith(mark)), "")
    how = "begins with the mark of" if encoding else "looks like"
    if not encoding and b"\0" in head:
        encoding = next((encoding for encoding in WIDE if _reads_as(head, encoding)), "")
    if encoding:
        raise DataError(
            f"{name} {how} {encoding}, and text has to be UTF-8; convert it: "
            f"{_piped(name, f'iconv -f {encoding} -t UTF-8')}"
        )


def _reads_as(head: bytes, encoding: str) -> bool:
    """Say whether bytes are printable text in an encoding, with enough ASCII for no accident."""
    try:
        text = codecs.getincrementaldecoder(encoding)().decode(head)
    except UnicodeDecodeError:
        return False
    share = 0.75 if head.isascii() else 0.05  # ASCII with a NUL here and there may read as Chinese
    plain = sum(character.isascii() for character in text)
    return plain > max(3, share * len(text)) and all(c.isprintable() or c in "\t\r\n" for c in text)


def _piped(name: str, command: str) -> str:
    """Return a line for a shell that converts a file."""
    cat = {".gz": "zcat", ".zst": "zstdcat"}.get(os.path.splitext(name)[1], "cat")
    return f"{cat} {shlex.quote(name)} | {command} > NEW_FILE"


def refuse_old_ends(first: str, name: str) -> None:
    """Raise DataError if the `first` line is the whole file and carriage returns part it."""
    if "\r" in first.rstrip("\r") and not first.endswith("\n"):
        convert = _piped(name, r"tr '\r' '\n'")
        raise DataError(
            f"{name}: its lines end in a carriage return, as on old Macs, and here a line feed "
            f"ends a line; convert it: {convert}"
        )


def check_text(data: bytes, most: int, where: str, known: bool) -> None:
    """Raise DataError where the text of UTF-8 takes more than 2 · `most` bytes of memory.

    Its widest character makes one, two or four bytes of each. `known` is whether a config says
    `most`.
    """
    width = 4 if _FOUR.search(data) else 2 if _TWO.search(data) else 1
    if width == 1 or len(data) * width <= 2 * most:
        return
    count = len(data.translate(None, _LATER))
    if count * width > 2 * most:
        raise DataError(
            f"{where} takes {count * width:,} bytes of memory, as the widest of its {count:,} "
            f"characters takes {width}, and {2 * most:,} are the most; break it up"
            + ", or raise data.max_line_bytes"
            * known
        )


def decoded(data: bytes, name: str, number: int, offset: int) -> str:
    """Return the text of UTF-8 `data`, which stands at a byte `offset` and line `number`.

    DataError with file and byte where it is not UTF-8.
    """
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = number + data.count(b"\n", 0, error.start)
        raise DataError(
            f"{name}, byte {offset + error.start} (line {line}) is not UTF-8: "
            f"{error.reason}; convert the file, for example with iconv"
        ) from None
