"""The order of the data: which tokens stand in which row, as a function of (seed, epoch, row).

A Plan knows how many rows an epoch has and makes any of them without the rows before it, so the
position in the data is one integer and every host makes only its own rows. Randomness comes from
a counter-based hash instead of a stateful generator: a number depends on (seed, name, row,
column) alone, never on the shape of the batch it was drawn for or on the version of numpy.
"""

import functools
import hashlib
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from flaxlm.errors import ConfigError

Raw = dict[str, np.ndarray]
Sequences = Mapping[str, tuple[np.ndarray, np.ndarray, int]]  # see ExamplePlan
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


class Plan(Protocol):
    """What a training or evaluation order offers; `report` holds numbers worth printing."""

    num_rows: int
    report: dict[str, float]

    def fetch(self, epoch: int, index: np.ndarray) -> Raw:
        """Return arrays [b, ...] for rows `index` int64[b] of an epoch; `example_ids` is one."""


def mix64(x: np.ndarray) -> np.ndarray:
    """Return the SplitMix64 finaliser (Steele et al., 2014) of uint64 values."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@functools.lru_cache(maxsize=256)
def _key(seed: int, name: str) -> np.uint64:
    digest = hashlib.blake2b(f"{seed} {name}".encode(), digest_size=8).digest()
    return np.uint64(int.from_bytes(digest, "little"))


@functools.lru_cache(maxsize=64)
def _columns(n: int) -> np.ndarray:
    return np.arange(1, n + 1, dtype=np.uint32) * np.uint32(0x9E3779B1)


class RowRandom:
    """Random numbers by (seed, name, row, column): row r's values never depend on the batch."""

    def __init__(self, seed: int, rows: np.ndarray):
        self.seed = seed
        self.rows = np.asarray(rows).astype(np.uint64)

    def bits(self, name: str, n: int) -> np.ndarray:
        """Return uint32 [b, n]."""
        # The 64-bit hash of (seed, name, row) enters the 32-bit finaliser of MurmurHash3 in two
        # halves, before and between its rounds: 64-bit multiplications have no vector instruction
        # on most CPUs, 32-bit ones do.
        row = mix64(_key(self.seed, name) + self.rows * _GOLDEN)
        low = row.astype(np.uint32)[:, None]
        high = (row >> np.uint64(32)).astype(np.uint32)[:, None]
        h = _columns(n) ^ low
        h ^= (shifted := np.right_shift(h, np.uint32(16)))
        h *= np.uint32(0x85EBCA6B)
        h += high
        h ^= np.right_shift(h, np.uint32(13), out=shifted)
        h *= np.uint32(0xC2B2AE35)
        h ^= np.right_shift(h, np.uint32(16), out=shifted)
        return h

    def uniform(self, name: str, n: int) -> np.ndarray:
        """Return float64 [b, n] in (0, 1), 32 bits of it random."""
        return (self.bits(name, n) + 0.5) * 2.0**-32

    def integers(self, name: str, n: int, high) -> np.ndarray:
        """Return int64 [b, n] in [0, high); `high` < 2³², a number or an array [b or 1, n or 1].

        Multiply and shift (Lemire, 2019) without its rejection: the bias is below high / 2³².
        """
        scaled = self.bits(name, n).astype(np.uint64) * np.asarray(high, np.uint64)
        return (scaled >> np.uint64(32)).astype(np.int64)


def permutation(seed: int, name: str, epoch: int, n: int) -> np.ndarray:
    """Return a permutation of range(n), uint32 or int64, a function of the arguments alone."""
    width = max(1, int(n - 1).bit_length())
    if width > 40:
        raise ConfigError(f"{n} rows or documents are more than one permutation can hold (2^40)")
    index = np.arange(n, dtype=np.uint64)
    keys = mix64(_key(seed, f"{name} {epoch}") + index * _GOLDEN)
    mask = np.uint64((1 << width) - 1)
    keys &= ~mask
    keys |= index  # so keys are unique, and every sorting algorithm gives the same answer
    keys.sort()
    keys &= mask
    return keys.astype(np.uint32 if width <= 32 else np.int64)


class PerEpoch:
    """What a plan computes once per epoch, kept for the last two epochs; thread-safe."""

    def __init__(self, make: Callable[[int], Any]):
        self._make, self._kept, self._lock = make, {}, threading.Lock()

    def __call__(self, epoch: int):
        """Return `make(epoch)`, computed once."""
        with self._lock:
            if epoch not in self._kept:
                if len(self._kept) == 2:
                    del self._kept[next(iter(self._kept))]
                self._kept[epoch] = self._make(epoch)
            return self._kept[epoch]


def ragged(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (owner, rank) of Σ counts items: i is the owner of counts[i], `rank` numbers them."""
    owner = np.repeat(np.arange(len(counts)), counts)
    first = np.cumsum(counts) - counts
    return owner, np.arange(len(owner)) - first[owner]


def gather_runs(take: Callable, source, target, segment, used, width) -> Raw:
    """Return tokens, segment_ids, positions, int32 [b, width], of runs of consecutive tokens.

    Args:
      take: `take(index int64[n]) -> int32[n]`, that of a TokenCache.
      source: int64[R], index in the cache of the first token of each run.
      target: int64[R], ascending: flat index in [b, width] where each run begins. A run ends
        where the next begins; the first run of each row begins at its column 0.
      segment: int32[R], 1, 2, … in each row.
      used: int64[b], columns in use; the others are padding, 0 everywhere.
      width: columns.
    """
    size = len(used) * width
    flat = np.arange(size)
    runs = np.diff(target, append=size)
    index = np.repeat(source - target, runs)
    index += flat
    segments = np.repeat(segment.astype(np.int32), runs).reshape(-1, width)
    positions = np.arange(size, dtype=np.int32)
    positions -= np.repeat(target.astype(np.int32), runs)
    positions = positions.reshape(-1, width)
    # Only rows with padding pay for it: in concatenated order that is one row an epoch.
    short = np.flatnonzero(used < width)
    if len(short):
        pad = np.arange(width) >= used[short, None]
        index = index.reshape(-1, width)
        for array in (index, segments, positions):
            array[short] = np.where(pad, 0, array[short])
    tokens = take(index.reshape(-1)).reshape(-1, width)
    if len(short):
        tokens[short] = np.where(pad, 0, tokens[short])
    return {"tokens": tokens, "segment_ids": segments, "positions": positions}


class ConcatPlan:
    """Documents in the epoch's order as one stream, cut into rows that overlap by one token.

    Row r is the stream's [r·L, r·L + L + 1), so that with inputs x[:-1] and targets x[1:] every
    token but each document's BOS is a target exactly once an epoch. When shuffling, documents and
    rows are permuted, and the stream is rotated: it begins o < L tokens inside its first document,
    whose first o + 1 tokens come at the end. So even one long document gives new windows in every
    epoch.
    """

    def __init__(self, cache, length: int, seed: int, shuffle: bool):
        self.cache, self.length, self.seed, self.shuffle = cache, length, seed, shuffle
        self._offsets = np.asarray(cache.doc_offsets)
        self._total = int(self._offsets[-1]) + bool(shuffle)
        self.num_rows = max(1, -(-(self._total - 1) // length))
        padding = 1 - (self._total - 1) / (self.num_rows * length)
        tokens = int(self._offsets[-1])
        self.report = {"rows": self.num_rows, "tokens": tokens, "padding": padding}
        self._epoch = PerEpoch(self._order)

    def _order(self, epoch: int):
        """Return (documents, stream offsets [pieces + 1], rows, rotation)."""
        if not self.shuffle:
            return None, self._offsets, None, 0
        documents = permutation(self.seed, "documents", epoch, len(self._offsets) - 1)
        rows = permutation(self.seed, "rows", epoch, self.num_rows)
        lengths = np.diff(self._offsets)[documents]
        rotation = RowRandom(self.seed, np.array([epoch])).integers(
            "rotation", 1, min(self.length, int(lengths[0]))
        )[0, 0]
        stream = np.zeros(len(lengths) + 2, np.int64)
        np.cumsum(lengths, out=stream[1:-1])
        stream[1:-1] -= rotation
        stream[-1] = self._total
        documents = np.append(documents, documents[:1])
        return documents, stream, rows, int(rotation)

    def fetch(self, epoch: int, index: np.ndarray) -> Raw:
        """Return tokens, segment_ids, positions [b, length + 1] and example_ids [b]."""
        documents, stream, permuted, rotation = self._epoch(epoch if self.shuffle else 0)
        row = index if permuted is None else permuted[index].astype(np.int64)
        width = self.length + 1
        start = row * self.length
        stop = np.minimum(start + width, self._total)
        first = np.searchsorted(stream, start, "right") - 1
        last = np.searchsorted(stream, stop - 1, "right") - 1
        owner, rank = ragged(last - first + 1)
        piece = first[owner] + rank
        begin = np.maximum(stream[piece], start[owner])
        source = begin - stream[piece]
        if documents is None:
            source += self._offsets[piece]
        else:
            source += self._offsets[documents[piece]]
            source[piece == 0] += rotation
        target = begin - start[owner] + owner * width
        raw = gather_runs(self.cache.take, source, target, rank + 1, stop - start, width)
        return raw | {"example_ids": row.astype(np.int32)}


class ExamplePlan:
    """A row for each example, permuted each epoch: for supervised objectives.

    Args:
      sequences: `{name: (values int32[T], offsets int64[N + 1], width)}`, each example's tokens
        under that name; no longer than width.
      columns: `{name: array [N, ...]}`, one entry for each example.
      seed, shuffle: the order.
      report: numbers to carry along.
      fixed: sequences that keep their width where Buckets cut rows. Of the others, those are cut
        that are at least as wide as a row.
    """

    def __init__(
        self, sequences: Sequences, columns: Raw, seed: int, shuffle: bool, report: dict, fixed=()
    ):
        self.sequences, self.columns = dict(sequences), dict(columns)
        self.shuffle, self.fixed = shuffle, fixed
        self.num_rows = len(next(iter(self.sequences.values()))[1]) - 1
        self.report = {"rows": self.num_rows, **report}
        self._epoch = PerEpoch(lambda epoch: permutation(seed, "examples", epoch, self.num_rows))

    def order(self, epoch: int) -> np.ndarray:
        """Return the examples of an epoch, int64 [N]."""
        return self._epoch(epoch).astype(np.int64) if self.shuffle else np.arange(self.num_rows)

    def fetch(self, epoch: int, index: np.ndarray) -> Raw:
        """Return each sequence [b, width], 0 behind its end, and its `<name>_lengths` [b]."""
        return self.take(self._epoch(epoch)[index].astype(np.int64) if self.shuffle else index)

    def lengths(self, length: int) -> np.ndarray:
        """Return how many of `length` columns each example needs, int64 [N], 1 or more."""
        needed = np.ones(self.num_rows, np.int64)
        for name, (_, offsets, width) in self.sequences.items():
            if width >= length and name not in self.fixed:
                needed = np.maximum(needed, np.diff(offsets) - (width - length))
        return needed

    def take(self, example: np.ndarray, length: int = 0, columns: int = 0) -> Raw:
        """Return the rows of examples int64 [b]; of `length` columns only the first `columns`."""
        raw = {"example_ids": example.astype(np.int32)}
        for name, (values, offsets, width) in self.sequences.items():
            if width >= length and name not in self.fixed:
                width -= length - columns
            lengths = offsets[example + 1] - offsets[example]
            real = np.arange(width) < lengths[:, None]
            place = np.where(real, offsets[example][:, None] + np.arange(width), 0)
            padded = values[place] if len(values) else np.zeros(place.shape, np.int32)
            raw[name] = padded * real
            raw[f"{name}_lengths"] = lengths.astype(np.int32)
        return raw | {name: column[example] for name, column in self.columns.items()}


class Mixture:
    """Rows of several plans in fixed proportions; each plan runs through its own epochs.

    A period of rows holds each plan in proportion to its weight (within one row), evenly
    distributed; how many of them a plan has given before global row g is a table look-up. Rows of
    different widths are padded with 0 to the widest.
    """

    PERIOD = 4096

    def __init__(self, plans: Sequence[Plan], weights: Sequence[float]):
        weights = np.asarray(weights, np.float64)
        if len(plans) != len(weights) or not len(plans) or not (weights > 0).all():
            raise ConfigError(
                f"data.weights={weights.tolist()}: one positive weight for each of the "
                f"{len(plans)} data paths is needed"
            )
        self.plans = list(plans)
        self.weights = weights / weights.sum()
        # Largest remainders, at least one row each.
        share = self.weights * self.PERIOD
        counts = np.maximum(np.floor(share).astype(np.int64), 1)
        order = np.argsort(counts - share, kind="stable")
        for step in range(abs(self.PERIOD - int(counts.sum()))):
            if counts.sum() < self.PERIOD:
                counts[order[step % len(order)]] += 1
            else:
                counts[np.argmax(counts)] -= 1
        when = np.concatenate([(np.arange(n) + 0.5) / n for n in counts])
        which = np.repeat(np.arange(len(counts)), counts)
        self._pattern = which[np.argsort(when, kind="stable")]
        taken = self._pattern[:, None] == np.arange(len(counts))
        self._before = np.cumsum(taken, axis=0) - taken
        self._counts = counts
        self.num_rows = sum(plan.num_rows for plan in plans)
        self._first = np.cumsum([0] + [plan.num_rows for plan in plans])
        self.report = {"rows": self.num_rows}
        for k, plan in enumerate(plans):
            self.report |= {f"{key}_{k}": value for key, value in plan.report.items()}

    def component(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return (plan index, that plan's own row number) of global rows int64[b]."""
        period, place = np.divmod(rows, self.PERIOD)
        which = self._pattern[place]
        return which, period * self._counts[which] + self._before[place, which]

    def fetch(self, epoch: int, index: np.ndarray) -> Raw:
        """Return the rows of all plans in one set of arrays [b, widest]."""
        which, number = self.component(epoch * self.num_rows + index)

        def rows_of(k: int, places: np.ndarray) -> Raw:
            raw = fetch_rows(self.plans[k], number[places])
            return raw | {"example_ids": raw["example_ids"] + np.int32(self._first[k])}

        return _by_key(which, rows_of)


def fetch_rows(plan: Plan, rows: np.ndarray) -> Raw:
    """Return rows int64[b], counted through all epochs: nothing is dropped where one ends."""
    epochs, index = np.divmod(rows, plan.num_rows)
    return _by_key(epochs, lambda epoch, places: plan.fetch(epoch, index[places]))


def _by_key(keys: np.ndarray, fetch: Callable[[int, np.ndarray], Raw]) -> Raw:
    """Return what `fetch(key, places)` gives for each of `keys` [b], in their places."""
    unique = np.unique(keys)
    places = [np.flatnonzero(keys == key) for key in unique]
    parts = [fetch(int(key), place) for key, place in zip(unique, places, strict=True)]
    return parts[0] if len(parts) == 1 else join_rows(parts, places)


def join_rows(parts: list[Raw], places: list[np.ndarray]) -> Raw:
    """Put the rows of parts at their places [b]; narrower ones are padded with 0."""
    joined = {}
    for name in parts[0]:
        arrays = [part[name] for part in parts]
        shape = np.max([array.shape for array in arrays], axis=0)
        joined[name] = np.zeros((sum(map(len, places)), *shape[1:]), arrays[0].dtype)
        for array, place in zip(arrays, places, strict=True):
            joined[name][(place, *(slice(n) for n in array.shape[1:]))] = array
    return joined
