"""Text that a tokenizer does not know: the share of unknown tokens, and words that become one."""

import itertools
import warnings
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from flaxlm.data.vocabulary import Tokenizer

SHARE = 0.05  # of unknown tokens, from which on a tokenizer was made for other text
SHOWN = 5  # words
LONGEST = 20  # characters of one


def unknown_id(tokenizer: Tokenizer) -> int:
    """Return the id that stands for unknown text alone; −1 where there is none (GPT-2's is EOS)."""
    roles = (tokenizer.bos_id, tokenizer.eos_id)
    return -1 if tokenizer.unk_id in roles else tokenizer.unk_id


def examples_of(tokenizer: Tokenizer, texts: Iterable[str]) -> str:
    """Return some words of texts that the tokenizer does not know, as a list to be read."""

    def words() -> Iterator[str]:
        seen = set()
        for word in itertools.chain.from_iterable(map(str.split, texts)):
            if word not in seen and tokenizer.unk_id in tokenizer.encode(word):
                yield repr(word if len(word) <= LONGEST else f"{word[:LONGEST]}…")
            seen.add(word)

    return ", ".join(itertools.islice(words(), SHOWN))


def warn_unknown(tokenizer: Tokenizer, ids: Sequence[Sequence[int]], texts: Sequence[str]) -> None:
    """Warn where more than `SHARE` of the tokens of texts are unknown, with some such words."""
    unk, total = unknown_id(tokenizer), sum(map(len, ids))
    unknown = sum(int(np.count_nonzero(np.asarray(part) == unk)) for part in ids)
    if unknown > SHARE * total:
        warnings.warn(
            f"{unknown / total:.0%} of the tokens of {len(ids):,} texts are unknown to the "
            f"tokenizer ({examples_of(tokenizer, texts)} …), which was made for other text",
            stacklevel=3,
        )
