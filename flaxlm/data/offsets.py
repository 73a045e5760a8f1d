"""Where tokens stand in the text that they came from, in characters (Unicode code points)."""

import itertools
import re
import unicodedata
from collections.abc import Sequence

import numpy as np

Spans = Sequence[tuple[int, int]]

_QUOTES = re.compile("``|''|.", re.DOTALL)


def tidy(text: str, spans: Spans) -> np.ndarray:
    """Return spans [n, 2], int32, without white space at their ends, empty if that is all.

    Combining marks that follow a token and that no token covers (an accent that the tokenizer
    drops) go with it.
    """
    begin, end = np.asarray(spans, np.int64).reshape(-1, 2).T
    size = len(text)
    index = np.arange(size)
    space = np.fromiter(map(str.isspace, text), bool, size)
    # Entry i: the first character from i on that is no space; the end of the last one before i.
    ahead = np.minimum.accumulate(np.append(np.where(space, size, index), size)[::-1])[::-1]
    behind = np.maximum.accumulate(np.append(0, np.where(space, 0, index + 1)))
    begin = np.minimum(ahead[begin], end)
    end = np.maximum(behind[end], begin)
    if not text.isascii():
        marks = np.fromiter((unicodedata.category(c)[0] == "M" for c in text), bool, size)
        over = np.append(np.where(marks, size, index), size)
        over = np.minimum.accumulate(over[::-1])[::-1]
        following = np.append(begin[1:], size)
        longer = np.minimum(over[end], np.maximum(following, end))
        end = np.where(end > begin, longer, end)
    return np.stack([begin, end], axis=1).astype(np.int32)


def of_bytes(text: str) -> list[tuple[int, int]]:
    """Return the character that each byte of the text's UTF-8 belongs to."""
    return [(i, i + 1) for i, character in enumerate(text) for _ in character.encode()]


def fill(spans: Spans, pieces: Sequence[str], space: str) -> list[tuple[int, int]]:
    """Return spans in which every piece of a character spans all of it.

    SentencePiece assigns a character that became several pieces (its bytes, or ½ as 1⁄2) to the
    last of them, and empty spans to the others. Pieces that are `space` alone stay empty.
    """
    whole = list(spans)
    for i in range(len(whole) - 2, -1, -1):
        if whole[i][0] == whole[i][1] and pieces[i].strip(space):
            whole[i] = whole[i + 1]
    return whole


def part(text: str, spans: Spans, pieces: Sequence[str]) -> list[tuple[int, int]]:
    """Return spans in which a byte, `<0x…>`, spans its character instead of a run of them."""
    parted, first = list(spans), 0
    for (begin, end), run in itertools.groupby(zip(spans, pieces, strict=True), lambda x: x[0]):
        names = [piece for _, piece in run]
        spelt = text[begin:end]
        if end - begin > 1 and names == [f"<0x{byte:02X}>" for byte in spelt.encode()]:
            alone = [(begin + b, begin + e) for b, e in of_bytes(spelt)]
            parted[first : first + len(names)] = alone
        first += len(names)
    return parted


def plain(text: str, lower: bool) -> tuple[str, np.ndarray]:
    """Return text as ALBERT's own code hands it to SentencePiece, and where each character was.

    Quotation marks of two characters become one; no accents (NFKD without combining marks) and,
    with `lower`, no capitals. The places are int64 [n, 2] spans of `text`.
    """
    characters, places = [], []
    for match in _QUOTES.finditer(text):
        unit = '"' if len(match[0]) == 2 else match[0]
        kept = [c for c in unicodedata.normalize("NFKD", unit) if not unicodedata.combining(c)]
        characters += kept
        places += [match.span()] * len(kept)
    joined = "".join(characters)
    return joined.lower() if lower else joined, np.array(places, np.int64).reshape(-1, 2)


def back(spans: Spans, places: np.ndarray) -> list[tuple[int, int]]:
    """Return spans in the text that another text's characters came from, at `places` [n, 2]."""
    edges = np.append(places[:, 0], places[-1, 1] if len(places) else 0)
    return [(int(edges[b]), int(places[e - 1, 1]) if e > b else int(edges[b])) for b, e in spans]
