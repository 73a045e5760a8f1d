"""From token ids to padded rows, by buckets of lengths."""

from collections.abc import Iterator, Sequence

import numpy as np

from flaxlm.errors import ConfigError

SMALLEST_BUCKET = 16


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
    room, more = limit - length + 1, f" and may get {new} more" if new > 1 else ""
    advice = f"set max_new_tokens to at most {room}" if room > 0 else "shorten the prompt"
    raise ConfigError(
        f"prompt {number} has {length} tokens{more}, but the model's learned positions end at "
        f"model.max_length={limit}; {advice}"
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
