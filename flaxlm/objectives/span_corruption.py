"""Span corruption (T5; Raffel et al., 2020, section 3.1.4): sentinels replace spans of text."""

import dataclasses
import functools
from typing import ClassVar

import numpy as np

from flaxlm.data.order import Raw, RowRandom, ragged
from flaxlm.data.packing import PackedPlan
from flaxlm.data.pipeline import Batch
from flaxlm.errors import ConfigError, check_range
from flaxlm.models import Model
from flaxlm.objectives.objective import Objective, Spec, floats, ints, shift_right


@dataclasses.dataclass(frozen=True)
class SpanCorruption(Objective):
    """Restore removed spans: `density` of the tokens, in spans of `mean_span` on average.

    A piece `a b c d e` becomes the encoder's `a <s0> d <s1> EOS` and the targets
    `<s0> b c <s1> e EOS`. Pieces are packed; sentinels are numbered afresh in each.
    """

    density: float = 0.15  # share of tokens removed, rounded for each piece, at least one token
    mean_span: float = 3.0  # tokens per span on average, which sets the number of spans
    target_length: int = 0  # columns of the decoder; 0: what a piece that fills the encoder needs

    name: ClassVar[str] = "span_corruption"

    @classmethod
    def fits(cls, row: Model) -> bool:
        """Return whether a model writes about what an encoder of its own has read."""
        return row.encodes

    def __post_init__(self):
        super().__post_init__()
        check_range("objective", self, "density", low=1e-3, high=0.9)
        check_range("objective", self, "mean_span", low=1, high=10_000)
        check_range("objective", self, "target_length", high=2**20)

    def spans(self, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return (removed tokens, spans) of pieces of these numbers of tokens, int64.

        At least one token is removed and, if there are two, one stays; every span has a token and
        a token before it, except in a piece of one token, which is removed whole.
        """
        tokens = np.asarray(tokens, np.int64)
        noise = np.rint(tokens * self.density).astype(np.int64)
        noise = np.clip(noise, 1, np.maximum(tokens - 1, 1))
        spans = np.rint(noise / self.mean_span).astype(np.int64)
        return noise, np.clip(spans, 1, np.maximum(np.minimum(noise, tokens - noise), 1))

    def costs(self, tokens: np.ndarray) -> np.ndarray:
        """Return encoder and decoder columns of pieces of these numbers of tokens, int64 [N, 2]."""
        noise, spans = self.spans(tokens)
        return np.stack([tokens - noise + spans + 1, noise + spans + 1], axis=-1)

    def decoder_length(self, length: int) -> int:
        """Return the decoder's columns for an encoder of `length`, a multiple of 8 if not set."""
        if self.target_length:
            return self.target_length
        sizes = self.costs(self._sizes(length))
        fitting = sizes[sizes[:, 0] <= length, 1].max(initial=1)
        return int(-(-fitting // 8) * 8)

    def _sizes(self, length: int) -> np.ndarray:
        """Return sizes of pieces in tokens, 1 up to a bound on those that fit into `length`."""
        return np.arange(1, int(length / (1 - self.density)) + 16)

    def batch_spec(self, batch_size: int, length: int) -> Spec:
        """Return the encoder's arrays [B, M = length] and the decoder's [B, L]."""
        encoder, row = (batch_size, length), (batch_size, self.decoder_length(length))
        spec = ints(encoder_tokens=encoder, encoder_segment_ids=encoder, encoder_positions=encoder)
        spec |= ints(tokens=row, targets=row, segment_ids=row, positions=row)
        return spec | floats(weights=row) | ints(example_ids=(batch_size,))

    def plan(self, source, length: int, tokenizer, *, seed: int, shuffle: bool) -> PackedPlan:
        """Return the packed pieces of a TokenCache; no token is left out and none overflows."""
        sentinels = len(tokenizer.sentinel_ids)
        if not sentinels:
            raise ConfigError(
                "span corruption needs sentinels: train the tokenizer with tokenizer.sentinels=100"
            )
        capacity = (length, self.decoder_length(length))
        pieces = self._sizes(length)
        fits = (self.costs(pieces) <= capacity).all(axis=1)
        fits &= self.spans(pieces)[1] <= sentinels
        if not fits[0]:
            raise ConfigError(
                f"no piece of text fits into an encoder of train.length={length} and a decoder of "
                f"objective.target_length={capacity[1]}; they need at least 2 and 3"
            )
        # Rounding makes costs dip here and there: cut at the longest below which all pieces fit.
        longest = len(pieces) if fits.all() else int(np.argmin(fits))
        sizes = {"longest": longest, "cost": self.costs, "capacity": capacity}
        return PackedPlan(source, **sizes, seed=seed, shuffle=shuffle)

    def preprocess(self, raw: Raw, rng: RowRandom, tokenizer, length: int) -> Batch:
        """Return the encoder's corrupted rows and the decoder's rows of removed spans."""
        text, width = raw["tokens"], raw["tokens"].shape[1]
        pieces = _Pieces(raw["lengths"], width, *self.spans(raw["lengths"]))
        kept, removed = pieces.segment(rng)
        # In the text a span's kept tokens come right before its removed ones.
        both = kept + removed
        begin = np.cumsum(both) - both + (pieces.begin - pieces.before)[pieces.owner]
        sentinels = np.asarray(tokenizer.sentinel_ids, np.int32)[pieces.rank]
        side = functools.partial(pieces.lay_out, text.reshape(-1), sentinels, tokenizer.eos_id)
        # Encoder: the kept tokens, then the sentinel for what follows. Decoder: the sentinel, then
        # the removed tokens.
        encoder = side(begin, kept, kept, length)
        columns = self.decoder_length(length)
        targets, segments, positions = side(begin + kept - 1, removed, 0 * removed, columns)
        return {
            "encoder_tokens": encoder[0],
            "encoder_segment_ids": encoder[1],
            "encoder_positions": encoder[2],
            "tokens": shift_right(targets, positions, tokenizer.start_id),
            "targets": targets,
            "segment_ids": segments,
            "positions": positions,
            "weights": (segments > 0).astype(np.float32),
            "example_ids": raw["example_ids"],
        }


class _Pieces:
    """The pieces of a batch and their spans, each as one flat list in row order.

    Attributes:
      row, before, begin: of each piece: its row, the tokens of the pieces before it, and its first
        token's flat index in the text [B, width].
      owner, rank: of each span: its piece, and its number within it.
    """

    def __init__(self, lengths, width, noise, spans):
        self.shape = (len(lengths), width)
        self.row, self.place = np.nonzero(lengths)
        self.used = lengths.sum(axis=1, dtype=np.int64)
        at = (self.row, self.place)
        self.tokens, self.noise, self.spans = lengths[at].astype(np.int64), noise[at], spans[at]
        self.before = np.cumsum(self.tokens) - self.tokens
        self.begin = self.before + (self.row * width - (np.cumsum(self.used) - self.used)[self.row])
        self.owner, self.rank = ragged(self.spans)

    def segment(self, rng: RowRandom):
        """Return the kept and the removed tokens of each span, each cut at random places.

        A piece of n tokens, k of them removed, lends its n columns to the draw: the first k stand
        for the removed tokens, the others for the kept. The first column of either part begins a
        span; the columns with the smallest random keys begin the others, so that every way to cut
        is as likely as any other.
        """
        # Two parts a piece, in order; the kept part of a piece of one token is empty.
        sizes = np.stack([self.noise, self.tokens - self.noise], axis=1).reshape(-1)
        first = np.stack([self.begin, self.begin + self.noise], axis=1).reshape(-1)
        counts = np.repeat(self.spans, 2) * (sizes > 0)
        width = self.shape[1]
        part = np.stack([2 * self.place, 2 * self.place + 1], axis=1).reshape(-1).astype(np.uint64)
        keys = rng.bits("spans", width).astype(np.uint64)
        keys <<= np.uint64(16)
        keys |= np.arange(width, dtype=np.uint64)
        flat = keys.reshape(-1)
        flat[first[sizes > 0]] &= np.uint64(0xFFFF)
        flat |= np.repeat(part << np.uint64(48), np.diff(first, append=flat.size))
        keys[np.arange(width) >= self.used[:, None]] = np.uint64(2**64 - 1)
        keys.sort(axis=1)
        # A part's keys are sorted into its own columns: its spans' are the first ones there.
        owner, rank = ragged(counts)
        chosen = first[owner] + rank
        begins = np.zeros(flat.size, bool)
        begins[(flat[chosen] & np.uint64(0xFFFF)).astype(np.int64) + chosen // width * width] = True
        starts = np.flatnonzero(begins)
        lengths = (first + sizes)[owner]
        last = np.cumsum(counts)[counts > 0] - 1
        ends = np.append(starts[1:], 0)
        ends[last] = lengths[last]
        lengths = ends - starts
        base = np.cumsum(counts) - counts
        removed = lengths[base[0::2][self.owner] + self.rank]
        kept_at = np.minimum(base[1::2][self.owner] + self.rank, len(lengths) - 1)
        return lengths[kept_at] * (self.tokens > 1)[self.owner], removed

    def lay_out(self, text, sentinels, eos_id, source, copied, sentinel_at, width):
        """Return (tokens, segment ids, positions) int32 [B, width], one run a span, EOS a piece.

        Of each run: `source` is the flat index in the text that stands at its column 0, `copied`
        its tokens of text, beside its sentinel, and `sentinel_at` the sentinel's column in it.
        """
        rows = self.shape[0]
        size = rows * width
        runs = copied + 1
        last = np.cumsum(self.spans) - 1
        runs[last] += 1
        ends = np.cumsum(runs)
        row_ends = ends[last[np.cumsum(np.bincount(self.row, minlength=rows)) - 1]]
        used = np.diff(row_ends, prepend=0)
        start = ends - runs + (np.arange(rows) * width - row_ends + used)[self.row[self.owner]]
        index = np.repeat((source - start).astype(np.int32), np.diff(start, append=size))
        index += np.arange(size, dtype=np.int32)
        tokens = np.take(text, index, mode="clip")
        tokens[start + sentinel_at] = sentinels
        tokens[start[last] + runs[last] - 1] = eos_id
        begin = start[last - self.spans + 1].astype(np.int32)
        lengths = np.diff(begin, append=size)
        segments = np.repeat((self.place + 1).astype(np.int32), lengths)
        positions = np.arange(size, dtype=np.int32)
        positions -= np.repeat(begin, lengths)
        real = np.arange(width, dtype=np.int32) < used[:, None].astype(np.int32)
        return tuple(array.reshape(rows, width) * real for array in (tokens, segments, positions))
