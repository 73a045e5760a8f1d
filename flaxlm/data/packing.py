"""Packing: several short pieces share a row, chosen from their lengths alone.

The composition of the rows is a function of the histogram of lengths, so an epoch has the same
number of rows every time, and which piece of a length fills which slot of that length is the
epoch's permutation. A cost is what a piece of n tokens takes of each capacity; span corruption
has two of them (encoder and decoder), both known from n, so that nothing ever overflows.
"""

import bisect
import operator
from collections.abc import Callable

import numpy as np

from flaxlm.data.order import PerEpoch, Raw, Sequences, gather_runs, permutation, ragged
from flaxlm.errors import ConfigError, DataError


def pack(counts: np.ndarray, costs: np.ndarray, capacity: np.ndarray):
    """Best-fit decreasing over a histogram of lengths (Krell et al., arXiv:2107.02027).

    Args:
      counts: int64[N], how many pieces have length n.
      costs: int64[N, K], what a piece of length n takes of each capacity; for lengths that occur
        each is at most the capacity.
      capacity: int64[K].

    Returns:
      (row_offsets int64[R + 1], slots int64[P]): row r holds pieces of the lengths
      slots[row_offsets[r] : row_offsets[r + 1]], longest first.
    """
    empty = tuple(int(c) for c in capacity)
    # Open rows by what remains of their capacities, tightest first; each entry is a list of
    # [composition ((length, how many), …), number of such rows].
    open_rows: dict[tuple, list] = {}
    tightest: list[tuple] = []

    def put(left, composition, number):
        if left not in open_rows:
            open_rows[left] = []
            bisect.insort(tightest, left)
        open_rows[left].append([composition, number])

    def find(cost):
        """Return the tightest open row that has room for `cost`, or None."""
        for left in tightest[bisect.bisect_left(tightest, cost) :]:
            if all(map(operator.ge, left, cost)):
                return left
        return None

    for length in np.flatnonzero(counts)[::-1].tolist():
        todo, cost = int(counts[length]), tuple(costs[length].tolist())
        while todo:
            left = find(cost)
            if left is None:
                composition, number, left = (), todo, empty
            else:
                composition, number = open_rows[left].pop()
                if not open_rows[left]:
                    del open_rows[left]
                    tightest.remove(left)
            each = min(have // need for have, need in zip(left, cost, strict=True) if need)
            each = min(each, todo)
            rows = min(number, todo // each)
            after = tuple(have - each * need for have, need in zip(left, cost, strict=True))
            put(after, (*composition, (length, each)), rows)
            todo -= rows * each
            if composition and number > rows:
                put(left, composition, number - rows)

    sizes, slots = [], []
    for left in tightest:
        for composition, number in open_rows[left]:
            lengths = np.repeat(*np.array(composition, np.int64).T)
            sizes.append(np.full(number, len(lengths)))
            slots.append(np.tile(lengths, number))
    return np.cumsum(np.concatenate([[0], *sizes])), np.concatenate(slots)


class Packed:
    """Rows of slots of a few kinds, which the items of each kind fill in each epoch's order.

    Args:
      what: names the items' permutation.
      kinds: int[N], each item's kind: an index into the histogram that was packed.
      rows, slots: from `pack`.
      seed, shuffle: the order.
    """

    def __init__(self, what: str, kinds, rows, slots, seed: int, shuffle: bool):
        self.seed, self.shuffle = seed, shuffle
        self._what, self._kinds, self._rows = what, kinds, rows
        # Slots and items, each sorted by kind, correspond one to one.
        self._slot_rank = np.empty(len(slots), np.int64)
        self._slot_rank[np.argsort(slots, kind="stable")] = np.arange(len(slots))
        self.num_rows = len(rows) - 1
        self._most = int(np.diff(rows).max())
        self._epoch = PerEpoch(self._order)

    def _order(self, epoch: int):
        """Return (item of each slot, rows or None)."""
        if not self.shuffle:
            return np.argsort(self._kinds, kind="stable")[self._slot_rank], None
        items = permutation(self.seed, self._what, epoch, len(self._kinds)).astype(np.int64)
        kinds = self._kinds[items]
        if kinds.max() < 2**16:  # 16-bit stable sorts are radix sorts
            kinds = kinds.astype(np.uint16)
        items = items[np.argsort(kinds, kind="stable")]
        return items[self._slot_rank], permutation(self.seed, "rows", epoch, self.num_rows)

    def _filled(self, epoch: int, index: np.ndarray):
        """Return the rows [b] at `index`, and of each item in them its number, row and rank."""
        items, permuted = self._epoch(epoch if self.shuffle else 0)
        row = index if permuted is None else permuted[index].astype(np.int64)
        owner, rank = ragged(self._rows[row + 1] - self._rows[row])
        return row, items[self._rows[row][owner] + rank], owner, rank


def _places(sizes, owner, rows: int, width: int):
    """Return the flat begin of each item in [rows, width], one behind the other; columns used."""
    end = np.cumsum(sizes)
    last = np.cumsum(np.bincount(owner, minlength=rows)) - 1
    used = np.diff(end[last], prepend=0)
    return end - sizes - (end[last] - used)[owner] + owner * width, used


class PackedPlan(Packed):
    """Documents cut into pieces of at most `longest` tokens and packed, best fit.

    BOS and EOS of the documents of `cache` are left out: the objective adds what it needs. `before`
    and `after` columns stay free (0) around each piece for that. `cost(n int64[N]) -> int64[N, K]`
    says what pieces of n tokens take of each capacity.
    """

    def __init__(
        self,
        cache,
        *,
        longest: int,
        cost: Callable[[np.ndarray], np.ndarray],
        capacity: tuple[int, ...],
        seed: int,
        shuffle: bool,
        before: int = 0,
        after: int = 0,
    ):
        if longest < 1:
            fault = f"rows of {capacity} tokens leave no room for text; increase train.length"
            raise ConfigError(fault)
        self.cache, self._before, self._after = cache, before, after
        starts, lengths = content(cache)
        pieces = -(-lengths // longest)
        owner, rank = ragged(pieces)
        starts = starts[owner] + rank * longest
        lengths = np.minimum(lengths[owner] - rank * longest, longest)
        if not len(lengths):
            raise DataError("no document has a token besides BOS and EOS; check data.path")
        counts = np.bincount(lengths)
        costs = cost(np.arange(len(counts)))
        self._ends_cache = int(starts[-1] + lengths[-1]) + after > cache.num_tokens
        rows, slots = pack(counts, costs, np.asarray(capacity))
        self._starts, self._lengths = starts, lengths.astype(np.int32)
        super().__init__("pieces", self._lengths, rows, slots, seed, shuffle)
        framed = np.concatenate([[0], np.cumsum(slots + before + after)])[rows]
        self.width = int(np.diff(framed).max())
        used = costs[slots].sum(axis=0) / (self.num_rows * np.asarray(capacity))
        self.report = {"rows": self.num_rows, "tokens": int(lengths.sum())}
        self.report["pieces_per_row"] = len(slots) / self.num_rows
        self.report |= zip(("padding", "padding_targets"), (1 - used).tolist(), strict=False)

    def _take(self, index: np.ndarray) -> np.ndarray:
        # Where documents have no EOS, free columns behind the last one have nothing to read.
        if self._ends_cache:
            np.minimum(index, self.cache.num_tokens - 1, out=index)
        return self.cache.take(index)

    def fetch(self, epoch: int, index: np.ndarray) -> Raw:
        """Return tokens, segment_ids, positions [b, width]; lengths [b, S]; example_ids [b].

        The free columns of a piece carry its segment id; positions count from its first column.
        """
        row, piece, owner, rank = self._filled(epoch, index)
        length = self._lengths[piece].astype(np.int64)
        framed = length + self._before + self._after
        target, used = _places(framed, owner, len(row), self.width)
        # A free column reads its neighbour in the cache, and is emptied afterwards.
        source = self._starts[piece] - self._before
        raw = gather_runs(self._take, source, target, rank + 1, used, self.width)
        flat = raw["tokens"].reshape(-1)
        for free in range(self._before):
            flat[target + free] = 0
        for free in range(self._after):
            flat[target + framed - 1 - free] = 0
        lengths = np.zeros((len(row), self._most), np.int32)
        lengths[owner, rank] = length
        return raw | {"lengths": lengths, "example_ids": row.astype(np.int32)}


class PackedExamples(Packed):
    """Examples, several to a row, packed best fit by the lengths of all their sequences.

    Arguments are those of an ExamplePlan; a width is that of a whole row of examples.
    """

    def __init__(self, sequences: Sequences, columns: Raw, seed: int, shuffle: bool, report: dict):
        self.sequences, self.columns = dict(sequences), dict(columns)
        sizes = np.stack([np.diff(offsets) for _, offsets, _ in self.sequences.values()], axis=1)
        capacity = np.array([width for *_, width in self.sequences.values()])
        # Examples of the same sizes are one kind; those that take the largest share come last,
        # where `pack` begins.
        kinds, kind_of, counts = np.unique(sizes, axis=0, return_inverse=True, return_counts=True)
        order = np.argsort((kinds / capacity).max(axis=1), kind="stable")
        rank = np.empty_like(order)
        rank[order] = np.arange(len(order))
        rows, slots = pack(counts[order], kinds[order], capacity)
        super().__init__("examples", rank[kind_of.reshape(-1)], rows, slots, seed, shuffle)
        used = float((sizes.sum(axis=0) / (self.num_rows * capacity)).max())
        self.report = {"rows": self.num_rows, **report, "padding": 1 - used}

    def fetch(self, epoch: int, index: np.ndarray) -> Raw:
        """Return each sequence, `<name>_segments` and `<name>_positions` [b, width].

        Columns are [b, S], one entry for each segment, 0 behind the last; example_ids number rows.
        """
        row, example, owner, rank = self._filled(epoch, index)
        raw = {"example_ids": row.astype(np.int32)}
        for name, (values, offsets, width) in self.sequences.items():
            sizes = offsets[example + 1] - offsets[example]
            target, used = _places(sizes, owner, len(row), width)
            runs = gather_runs(values.take, offsets[example], target, rank + 1, used, width)
            raw[name] = runs["tokens"]
            raw[f"{name}_segments"] = runs["segment_ids"]
            raw[f"{name}_positions"] = runs["positions"]
        for name, column in self.columns.items():
            raw[name] = np.zeros((len(row), self._most), column.dtype)
            raw[name][owner, rank] = column[example]
        return raw


def content(cache) -> tuple[np.ndarray, np.ndarray]:
    """Return (first token after BOS, tokens without BOS and EOS) of each document, int64[D]."""
    offsets = np.asarray(cache.doc_offsets)
    return offsets[:-1] + 1, np.diff(offsets) - 1 - bool(cache.append_eos)
