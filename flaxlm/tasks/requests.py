"""What a model is asked when answers are ranked by likelihood: text laid out as token ids.

A causal or text-to-text model says how likely a continuation is after a context; a masked one how
likely each token is in its place, the others given (Salazar et al., 2020). `request` makes the one
or the other from the same two texts, so that a task asks every family the same question.
"""

from collections.abc import Sequence
from typing import NamedTuple

from flaxlm.data.vocabulary import Tokenizer
from flaxlm.errors import ConfigError, DataError

Ids = tuple[int, ...]


class Continuation(NamedTuple):
    """Token ids as the model reads them, special ones included, and those that may follow."""

    context: Ids
    continuation: Ids


class Masked(NamedTuple):
    """Rows of (ids, token types, place), special ids included: in each the place is masked."""

    rows: tuple[tuple[Ids, Ids, int], ...]


Request = Continuation | Masked


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


def request(tokenizer: Tokenizer, family: str, context: str, text: str) -> Request:
    """Return the question how likely `text` is after `context`, which may be empty.

    Args:
      tokenizer: the model's.
      family: the model's key in MODELS. A decoder or recurrent model reads `BOS context`; the
        encoder of an encoder-decoder reads `context EOS`, and its decoder writes the text; an
        encoder reads both within its special tokens, and every token of the text is masked in
        turn.
      context: what is given.
      text: what is judged.

    Raises:
      DataError: the text has no tokens.
    """
    if family == "encoder_decoder":
        before, behind = tokenizer.encode_batch(_spaced(context, text))
    else:
        before, behind = border(tokenizer, context, text)
    if not behind:
        raise DataError(f"there is nothing to judge: {text!r} has no tokens")
    if family == "encoder_decoder":
        return Continuation((*before, tokenizer.eos_id), tuple(behind))
    if family == "encoder":
        ids, types = tokenizer.with_specials([*before, *behind])
        first = len(tokenizer.template.single.specials[0]) + len(before)
        return masked(tokenizer, ids, types, range(first, first + len(behind)))
    return Continuation((tokenizer.bos_id, *before), tuple(behind))


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
    _, right = border(tokenizer, before + word, after)
    if not inside:
        raise DataError(f"there is nothing to judge: {word!r} has no tokens")
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
