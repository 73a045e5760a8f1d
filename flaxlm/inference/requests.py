"""What a model is asked when answers are ranked by likelihood: text laid out as token ids.

A causal or text-to-text model says how likely a continuation is after a context; a masked one how
likely each token is in its place, the others given (Salazar et al., 2020). `request` makes the one
or the other from the same two texts, so that a task asks every family the same question.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from flaxlm.data.vocabulary import Tokenizer
from flaxlm.errors import ConfigError, DataError

Ids = tuple[int, ...]


class Reader(NamedTuple):
    """Who is asked: a family of MODELS, and how many tokens it reads at once (None: any number)."""

    tokenizer: Tokenizer
    family: str
    limit: int | None = None

    @property
    def traits(self):
        """What the family reads and writes; see `models.Model`."""
        from flaxlm.models import MODELS  # brings jax in: requests are made without it

        return MODELS[self.family]


class Continuation(NamedTuple):
    """Token ids as the model reads them, special ones included, and those that may follow."""

    context: Ids
    continuation: Ids


class Masked(NamedTuple):
    """Rows of (ids, token types, place), special ids included: in each the place is masked."""

    rows: tuple[tuple[Ids, Ids, int], ...]


Request = Continuation | Masked


class Scores(NamedTuple):
    """What a model makes of N requests.

    Attributes:
      tokens: the log-probability (nats, float32) of every token of each request, N arrays.
      greedy: bool [N], whether each token is the one that the model finds likeliest there.
      cut: bool [N], whether the context was cut on the left to fit into the model's positions.
    """

    tokens: Sequence[np.ndarray]
    greedy: np.ndarray
    cut: np.ndarray

    @property
    def log_likelihood(self) -> np.ndarray:
        """Nats, float64 [N]."""
        return np.array([values.sum(dtype=np.float64) for values in self.tokens], np.float64)

    @property
    def num_tokens(self) -> np.ndarray:
        """How many tokens were judged, int64 [N]."""
        return np.array([len(values) for values in self.tokens], np.int64)

    def groups(self, sizes: Sequence[int]) -> "list[Scores]":
        """Return the scores of the first `sizes[0]` requests, of the next `sizes[1]`, …"""
        ends = np.cumsum(sizes, dtype=np.int64)
        parts = [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]
        return [Scores(self.tokens[p], self.greedy[p], self.cut[p]) for p in parts]


def border(tokenizer: Tokenizer, context: str, text: str) -> tuple[list[int], list[int]]:
    """Return the ids of a context and of the text behind it, as they stand in one text.

    White space at the context's end goes to the text, where vocabularies that join a space to the
    word after it look for it. Both are encoded as one text where that leaves the context's own ids
    in front. Where a token spans the border (as in Chinese, which has no spaces), they are encoded
    apart, so that all texts behind a context are judged after the same tokens.
    """
    context, text = _spaced(context, text)
    before, whole = tokenizer.encode_batch([context, context + text])
    if whole[: len(before)] == before:
        return before, whole[len(before) :]
    # A newline keeps the space away that some vocabularies put before the first word of a text.
    line, behind = tokenizer.encode_batch(["\n", "\n" + text])
    alone = behind[len(line) :] if behind[: len(line)] == line else tokenizer.encode(text)
    return before, alone


def _spaced(context: str, text: str) -> tuple[str, str]:
    """Return both, with the white space at the context's end put before the text."""
    bare = context.rstrip()
    return bare, context[len(bare) :] + text


def request(reader: Reader, context: str, text: str) -> Request:
    """Return the question how likely `text` is after `context`, which may be empty.

    A decoder or recurrent model reads `BOS context`. The encoder of an encoder-decoder reads
    `context EOS`, and its decoder writes the text. An encoder reads both within its special
    tokens, and every token of the text is masked in turn. DataError where the text has no tokens.
    """
    tokenizer = reader.tokenizer
    if reader.traits.encodes:
        before, behind = tokenizer.encode_batch(_spaced(context, text))
    else:
        before, behind = border(tokenizer, context, text)
    _check_text(text, behind)
    if reader.traits.encodes:
        return Continuation((*before, tokenizer.eos_id), tuple(behind))
    if reader.traits.bidirectional:
        ids, types = tokenizer.with_specials([*before, *behind])
        first = len(tokenizer.template.single.specials[0]) + len(before)
        return masked(tokenizer, ids, types, range(first, first + len(behind)))
    return Continuation((tokenizer.bos_id, *before), tuple(behind))


def following(reader: Reader, first: str, second: str) -> Request:
    """Return the question how likely a sentence is after another.

    As `request`, with a space between the two; but an encoder reads them as a pair.
    """
    if not reader.traits.bidirectional:
        return request(reader, first, f" {second}")
    tokenizer = reader.tokenizer
    before, behind = tokenizer.encode_batch(_spaced(first, second))
    _check_text(second, behind)
    ids, types = tokenizer.with_specials(before, behind)
    start, between, _ = tokenizer.template.pair.specials
    place = len(start) + len(before) + len(between)
    return masked(tokenizer, ids, types, range(place, place + len(behind)))


def _check_text(text: str, ids: Sequence[int]) -> None:
    if not ids:
        raise DataError(f"there is nothing to judge: {text!r} has no tokens")


def masked(
    tokenizer: Tokenizer, ids: Sequence[int], types: Sequence[int], places: Sequence[int]
) -> Masked:
    """Return the question how likely the ids at `places` are, each masked in turn."""
    check_mask(tokenizer)
    ids, types = tuple(ids), tuple(types)
    return Masked(tuple((ids, types, place) for place in places))


def cloze(tokenizer: Tokenizer, before: str, word: str, after: str) -> Masked:
    """Return the question which word stands between two texts, its tokens from left to right.

    Each token of the word is masked with those behind it taken away, so that no part of the word
    gives away another, as a masked LM is asked in StereoSet (Nadeem et al., 2021).
    """
    check_mask(tokenizer)
    left, inside = border(tokenizer, before, word)
    right = border(tokenizer, before + word, after)[1] if after else []
    _check_text(word, inside)
    first = len(tokenizer.template.single.specials[0]) + len(left)
    rows = []
    for count in range(len(inside)):
        ids, types = tokenizer.with_specials([*left, *inside[: count + 1], *right])
        rows.append((tuple(ids), tuple(types), first + count))
    return Masked(tuple(rows))


def check_mask(tokenizer: Tokenizer) -> None:
    """Raise ConfigError for a tokenizer without a mask."""
    if tokenizer.mask_id < 0:
        raise ConfigError(
            "an encoder is asked with a mask in place of tokens, and this tokenizer has none"
        )


def check_left_to_right(family: str) -> None:
    """Raise ConfigError unless a family of models goes on from what it has read."""
    from flaxlm.models import MODELS  # see `Reader.traits`

    valid = [name for name, row in MODELS.items() if row.writes and not row.encodes]
    if family not in valid:
        raise ConfigError(
            f"windows of a text are judged from left to right, and model {family!r} does not read "
            f"that way; it works on: {', '.join(valid)}"
        )


def windows(stream: Sequence[int], window: int, stride: int) -> Iterator[Continuation]:
    """Yield requests that judge every token of a stream but its first exactly once.

    Each reads `window` tokens at most and judges `stride` of them, the first as many as it can:
    all the others have `window − stride` tokens of context or more.
    """
    begin, end = 1, min(len(stream), 1 + window)
    while begin < end:
        # The last token is judged and not read: so many are read as the window holds.
        first = max(0, end - 1 - window)
        yield Continuation(tuple(stream[first:begin]), tuple(stream[begin:end]))
        begin, end = end, min(len(stream), end + stride)
