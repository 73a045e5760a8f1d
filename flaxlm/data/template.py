"""Special tokens around what an encoder reads: one text, or two."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

Ids = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Frame:
    """Special tokens around one text, `specials[0] a specials[1]`, or two, `… b specials[2]`."""

    specials: tuple[Ids, ...]  # before, between and behind the texts
    special_types: tuple[Ids, ...]  # the token types of those ids
    text_types: Ids  # the token type of each text

    @property
    def size(self) -> int:
        """Number of special tokens."""
        return sum(map(len, self.specials))

    def around(self, *texts: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Return (ids, token types), int32, of texts (ids) with the specials in their places."""
        ids, types = [self.specials[0]], [self.special_types[0]]
        behind = zip(texts, self.text_types, self.specials[1:], self.special_types[1:], strict=True)
        for text, text_type, special, special_type in behind:
            ids += [text, special]
            types += [np.full(len(text), text_type), special_type]
        ids, types = ([np.asarray(part, np.int32) for part in parts] for parts in (ids, types))
        return np.concatenate(ids), np.concatenate(types)


class Template(NamedTuple):
    """How an encoder reads one text and a pair of texts."""

    single: Frame
    pair: Frame

    @classmethod
    def of(cls, before: Ids, between: Ids, after: Ids, second_type: int = 1) -> "Template":
        """Return `before a after` and `before a between b after`; types 0, `second_type` from b."""
        specials = before, between, after
        types = (0,) * len(before), (0,) * len(between), (second_type,) * len(after)
        single = Frame((before, after), (types[0], (0,) * len(after)), (0,))
        return cls(single, Frame(specials, types, (0, second_type)))
