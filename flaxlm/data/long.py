"""Long texts are encoded in parts: of each token in a call a library keeps hundreds of bytes."""

import itertools
import re
from collections.abc import Callable, Iterator

PART = 1 << 19  # characters of a part; what is no longer than two is encoded as a whole
WINDOW = 512  # characters on either side of a cut
TRIES = 64  # places that are tried for one
_EDGE = re.compile(r"(?<=\S)(?=\s)|(?<=\s)(?=\S)")


def cuts(text: str, encode: Callable[[str], list[int]]) -> Iterator[str]:
    """Yield the parts of a text, whose ids as `encode` makes them are together those of the whole.

    A part ends at an edge of a word where the characters around it have the same ids together as
    apart. Where there is none, as of a tokenizer that begins every text with a space, its ids are
    not quite those of the whole.
    """
    start = 0
    while len(text) - start > 2 * PART:
        end = _cut(text, start + PART, encode)
        yield text[start:end]
        start = end
    yield text[start:]


def _cut(text: str, least: int, encode: Callable[[str], list[int]]) -> int:
    edges = (edge.start() for edge in _EDGE.finditer(text, least, least + PART))
    tried = list(itertools.islice(edges, TRIES))
    for at in tried:
        left, right = text[at - WINDOW : at], text[at : at + WINDOW]
        if encode(left) + encode(right) == encode(left + right):
            return at
    return next(iter(tried), least)
