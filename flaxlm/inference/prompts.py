"""From prompts to padded rows: length buckets, and blanks to be filled."""

import re
from collections.abc import Iterator, Sequence

import numpy as np

from flaxlm.data.vocabulary import Tokenizer
from flaxlm.errors import ConfigError, DataError

SMALLEST_BUCKET = 16
BLANK = re.compile(r"\[MASK\]|<extra_id_(\d+)>")


def bucket(length: int) -> int:
    """Return the padded length: the next power of two, at least 16."""
    return max(SMALLEST_BUCKET, 1 << (length - 1).bit_length())


def batches(lengths: Sequence[int], batch_size: int) -> Iterator[tuple[list[int], int]]:
    """Yield (indices, padded length): indices of one bucket of lengths, batch_size at most."""
    by_bucket: dict[int, list[int]] = {}
    for index, length in enumerate(lengths):
        by_bucket.setdefault(bucket(length), []).append(index)
    for padded, indices in sorted(by_bucket.items()):
        for begin in range(0, len(indices), batch_size):
            yield indices[begin : begin + batch_size], padded


def pad(
    rows: Sequence[Sequence[int]], size: int, length: int, *, left: bool
) -> dict[str, np.ndarray]:
    """Return tokens, segment_ids and positions, int32 [size, length]; missing rows are empty.

    Positions count real tokens from 0; a decoder's prompts are padded on the `left`, so that all
    of them end, and their continuations begin, in the same column.
    """
    tokens = np.zeros((size, length), np.int32)
    segments = np.zeros_like(tokens)
    positions = np.zeros_like(tokens)
    for row, ids in enumerate(rows):
        place = slice(length - len(ids), length) if left else slice(0, len(ids))
        tokens[row, place] = ids
        segments[row, place] = 1
        positions[row, place] = np.arange(len(ids))
    return {"tokens": tokens, "segment_ids": segments, "positions": positions}


def position_limit(config) -> int | None:
    """Return how many tokens a text can have, None where positions are not a learned table."""
    return config.max_length if getattr(config, "positions", "") == "learned" else None


def check_positions(config, number: int, length: int, new: int = 1) -> None:
    """Raise ConfigError where prompt `number` and its new tokens outgrow learned positions.

    The last new token is never read, so `new` of them take one position less.
    """
    limit = position_limit(config)
    if limit is None or length + new - 1 <= limit:
        return
    room = limit - length + 1
    advice = f"set max_new_tokens to at most {room}" if room > 0 else "shorten the prompt"
    raise ConfigError(
        f"prompt {number} has {length} tokens{f' and may get {new} more' if new > 1 else ''}, but "
        f"the model's learned positions end at model.max_length={limit}; {advice}"
    )


def padded_lengths(config, padded: int, new: int) -> tuple[int, int, int]:
    """Return (prompt length, room for new tokens, cache length) to compile a batch for.

    Buckets shrink where the padding alone would outgrow a table of learned positions; a prompt
    that `check_positions` accepts fits.
    """
    room = bucket(new)
    limit = position_limit(config)
    if limit is not None:
        padded = min(padded, limit - new + 1)
        room = min(room, limit - padded + 1)
    return padded, room, padded + room - 1


def split_blanks(
    tokenizer: Tokenizer, prompt: str, number: int, *, masks: bool
) -> tuple[list[str], list[int]]:
    """Return (the texts around the blanks of a prompt, the id that stands in each blank).

    `[MASK]` is a blank for an encoder (`masks`); for a model with sentinels `<extra_id_0>` … are,
    and `[MASK]` becomes the next sentinel. Where the vocabulary joins a space to the word after
    it, the space before a blank belongs to the blank, as it did in training.
    """
    blanks = [m for m in BLANK.finditer(prompt) if not masks or m[1] is None]
    sentinels = tokenizer.sentinel_ids
    named = {int(blank[1]) for blank in blanks if blank[1] is not None}
    free = (n for n in range(len(blanks) + len(named)) if n not in named)
    ids: list[int] = []
    texts: list[str] = []
    begin = 0
    for blank in blanks:
        text = prompt[begin : blank.start()]
        texts.append(text.removesuffix(" ") if tokenizer.spaces_join else text)
        begin = blank.end()
        if masks:
            ids.append(tokenizer.mask_id)
            continue
        sentinel = int(blank[1]) if blank[1] is not None else next(free)
        if sentinel >= len(sentinels):
            raise DataError(
                f"prompt {number}: blank {blank[0]} needs sentinel {sentinel}, and the tokenizer "
                f"has {len(sentinels)}; use fewer blanks, or a tokenizer with more sentinels"
            )
        ids.append(int(sentinels[sentinel]))
    if len(set(ids)) < len(ids) and not masks:
        raise DataError(f"prompt {number} uses a sentinel twice; number its blanks apart")
    return [*texts, prompt[begin:]], ids


def interleave(texts: Sequence, fills: Sequence) -> list:
    """Return text, fill, text, fill, …, text as one list."""
    joined = [texts[0]]
    for fill, text in zip(fills, texts[1:], strict=True):
        joined += [fill, text]
    return joined


def join_ids(tokenizer: Tokenizer, texts: Sequence[str], blanks: Sequence[int]) -> list[int]:
    """Return the ids of a prompt, each blank in its place."""
    parts = interleave(tokenizer.encode_batch(texts), [[blank] for blank in blanks])
    return [token for part in parts for token in part]


def spans(tokenizer: Tokenizer, ids: Sequence[int]) -> dict[int, str]:
    """Return {sentinel id: the text that follows it} of a span-corruption answer."""
    sentinels = set(tokenizer.sentinel_ids.tolist())
    starts = [place for place, token in enumerate(ids) if token in sentinels]
    ends = [*starts[1:], len(ids)]
    # A sentinel said twice keeps its first text.
    pairs = [(ids[a], tokenizer.decode(ids[a:b])) for a, b in zip(starts, ends, strict=True)]
    return dict(reversed(pairs))
