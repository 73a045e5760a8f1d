"""Packing: nothing overflows, nothing is lost, the number of rows is that of every epoch."""

import collections
import itertools

import numpy as np
import pytest
from fakes import FakeCache, text_of
from hypothesis import given, settings
from hypothesis import strategies as st

from flaxlm.data.packing import PackedPlan, pack
from flaxlm.errors import ConfigError, DataError

LENGTHS = [0, 3, 40, 7, 7, 1, 25, 12, 2, 9, 9, 9, 31]


def plan_of(cache, length=16, shuffle=True, **changes):
    options = dict(
        longest=length - 2,
        cost=lambda n: (n + 2)[:, None],
        capacity=(length,),
        before=1,
        after=1,
        seed=0,
        shuffle=shuffle,
    )
    return PackedPlan(cache, **(options | changes))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 20), min_size=1, max_size=60),
    st.integers(20, 45),
    st.integers(13, 30),
)
def test_pack_places_every_piece_within_every_capacity(lengths, first, second):
    counts = np.bincount(lengths, minlength=21)
    n = np.arange(21)
    costs = np.stack([n, n // 2 + n % 3], axis=1)
    offsets, slots = pack(counts, costs, np.array([first, second]))
    np.testing.assert_array_equal(np.bincount(slots, minlength=21), counts)
    assert offsets[0] == 0 and offsets[-1] == len(slots) and (np.diff(offsets) > 0).all()
    for a, b in itertools.pairwise(offsets):
        assert (costs[slots[a:b]].sum(axis=0) <= [first, second]).all()


def best_fit_decreasing(lengths, costs, capacity):
    """Return how often each row occurs, by the plain algorithm: a piece at a time.

    A piece goes to the row with the least room that takes it, of equals to the last one changed.
    """
    rows = []  # [what is left, when it changed, lengths]
    for now, length in enumerate(sorted(lengths, reverse=True)):
        fitting = [row for row in rows if (row[0] >= costs[length]).all()]
        if not fitting:
            fitting = [[capacity, now, []]]
            rows += fitting
        row = min(fitting, key=lambda row: (row[0].tolist(), -row[1]))
        row[:] = row[0] - costs[length], now, [*row[2], length]
    return collections.Counter(tuple(row[2]) for row in rows)


@pytest.mark.parametrize("capacities", [1, 2])
def test_pack_equals_best_fit_decreasing_a_piece_at_a_time(capacities):
    for seed in range(100):
        rng = np.random.default_rng(seed)
        longest = int(rng.integers(2, 50))
        lengths = rng.integers(1, longest + 1, rng.integers(1, 200))
        costs = np.arange(longest + 1)[:, None] + rng.integers(0, 9, (longest + 1, capacities))
        capacity = costs.max(axis=0) + rng.integers(0, 40, capacities)
        offsets, slots = pack(np.bincount(lengths), costs, capacity)
        rows = (tuple(slots[a:b].tolist()) for a, b in itertools.pairwise(offsets))
        expected = best_fit_decreasing(lengths.tolist(), costs, capacity)
        assert collections.Counter(rows) == expected, seed


@pytest.mark.parametrize("eos", [False, True])
@pytest.mark.parametrize("shuffle", [False, True])
def test_every_token_of_text_stands_in_one_piece(eos, shuffle):
    cache = FakeCache(LENGTHS, eos=eos)
    text = np.concatenate([text_of(d) for d in cache.documents])
    plan = plan_of(cache, shuffle=shuffle)
    orders = []
    for epoch in (0, 1):
        raw = plan.fetch(epoch, np.arange(plan.num_rows))
        free = (raw["positions"] == 0) & (raw["segment_ids"] > 0)
        real = (raw["segment_ids"] > 0) & (raw["tokens"] > 0)
        np.testing.assert_array_equal(np.sort(raw["tokens"][real]), np.sort(text))
        # One free column before each piece and one behind it.
        assert 2 * free.sum() == ((raw["segment_ids"] > 0) & (raw["tokens"] == 0)).sum()
        assert free.sum() == np.count_nonzero(raw["lengths"])
        orders.append(raw["tokens"])
    assert (orders[0].tolist() == orders[1].tolist()) == (not shuffle)


def test_pieces_are_consecutive_tokens_of_one_document():
    cache = FakeCache.of([list(range(100 * d + 5, 100 * d + 5 + n)) for d, n in enumerate(LENGTHS)])
    plan = plan_of(cache)
    raw = plan.fetch(4, np.arange(plan.num_rows))
    for tokens, segments, positions, lengths in zip(
        raw["tokens"], raw["segment_ids"], raw["positions"], raw["lengths"], strict=True
    ):
        for number, length in enumerate(lengths[lengths > 0], 1):
            piece = tokens[segments == number]
            assert positions[segments == number].tolist() == list(range(length + 2))
            assert piece[0] == piece[-1] == 0
            assert (np.diff(piece[1:-1]) == 1).all() and len(piece) == length + 2
        assert segments.max() == np.count_nonzero(lengths)


def test_rows_do_not_depend_on_the_rows_beside_them():
    plan = plan_of(FakeCache(LENGTHS * 3))
    whole = plan.fetch(1, np.arange(plan.num_rows))
    part = plan.fetch(1, np.array([5, 0]))
    for name, array in part.items():
        np.testing.assert_array_equal(array, whole[name][[5, 0]])


def test_shuffling_moves_pieces_between_rows():
    plan = plan_of(FakeCache([5] * 40, vocab_size=20_000), capacity=(14,))
    pairs = []
    for epoch in (0, 1):
        raw = plan.fetch(epoch, np.arange(plan.num_rows))
        pairs.append({tuple(sorted((row[1], row[8]))) for row in raw["tokens"]})
    assert len(pairs[0] & pairs[1]) < 8


def test_report_counts_padding():
    plan = plan_of(FakeCache([5, 5, 3]), length=16)
    assert plan.num_rows == 2
    assert plan.report["tokens"] == 13
    assert plan.report["padding"] == pytest.approx(1 - (13 + 6) / 32)
    assert plan.report["pieces_per_row"] == 1.5


def test_refuses_rows_without_room_and_documents_without_text():
    with pytest.raises(ConfigError, match=r"train\.length"):
        plan_of(FakeCache(LENGTHS), length=2)
    with pytest.raises(DataError, match="no document has a token"):
        plan_of(FakeCache([0, 0]))
