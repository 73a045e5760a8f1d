"""The order: every token a target once, rows independent of their batch, closed-form mixtures."""

import numpy as np
import pytest
from fakes import BOS, EOS, FakeCache
from scipy import stats

from flaxlm.data.order import ConcatPlan, ExamplePlan, Mixture, RowRandom, fetch_rows, permutation
from flaxlm.errors import ConfigError

LENGTHS = [5, 1, 0, 17, 2, 30, 8]


def rows_of(plan, epoch=0):
    return plan.fetch(epoch, np.arange(plan.num_rows))


def test_random_numbers_depend_on_row_and_column_alone():
    whole = RowRandom(3, np.arange(100))
    part = RowRandom(3, np.array([70, 4]))
    np.testing.assert_array_equal(whole.bits("a", 50)[[70, 4], :20], part.bits("a", 20))
    assert (whole.bits("a", 50) != whole.bits("b", 50)).mean() > 0.99
    assert (whole.bits("a", 50) != RowRandom(4, np.arange(100)).bits("a", 50)).mean() > 0.99
    # Fixed for ever: a checkpoint's next batch may not change with a release.
    assert RowRandom(0, np.array([0, 1])).bits("x", 2).tolist() == [
        [3926819587, 560875598],
        [2292031993, 2346397547],
    ]


def test_random_numbers_look_independent_and_uniform():
    u = RowRandom(1, np.arange(400)).uniform("u", 500)
    assert u.min() > 0 and u.max() < 1
    assert stats.kstest(u.reshape(-1), "uniform").pvalue > 1e-3
    # Neighbours in either direction, and the same column under another name.
    for a, b in (
        (u[:-1], u[1:]),
        (u[:, :-1], u[:, 1:]),
        (u, RowRandom(1, np.arange(400)).uniform("v", 500)),
    ):
        assert abs(np.corrcoef(a.reshape(-1), b.reshape(-1))[0, 1]) < 4 / np.sqrt(a.size)
    bits = np.unpackbits(RowRandom(1, np.arange(400)).bits("u", 500).view(np.uint8))
    assert abs(bits.mean() - 0.5) < 4 * 0.5 / np.sqrt(bits.size)


def test_integers_cover_their_range_evenly():
    drawn = RowRandom(0, np.arange(3000)).integers("i", 10, 7)
    counts = np.bincount(drawn.reshape(-1), minlength=7)
    assert stats.chisquare(counts).pvalue > 1e-3 and len(counts) == 7
    high = np.arange(1, 3001)[:, None]
    assert (RowRandom(0, np.arange(3000)).integers("i", 10, high) < high).all()


@pytest.mark.parametrize("n", [1, 2, 3, 1000])
def test_permutation_holds_everything_once(n):
    found = permutation(0, "rows", 5, n)
    np.testing.assert_array_equal(np.sort(found), np.arange(n))
    if n == 1000:
        assert (found != permutation(0, "rows", 6, n)).mean() > 0.9
        # No place is preferred: the mean of where index 0 … 9 lands.
        where = [np.argsort(permutation(0, "rows", e, 50))[:10].mean() for e in range(300)]
        assert abs(np.mean(where) - 24.5) < 1.5


@pytest.mark.parametrize("length", [1, 3, 7, 16, 200])
@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("eos", [False, True])
def test_every_token_but_bos_is_a_target_exactly_once(length, shuffle, eos):
    cache = FakeCache(LENGTHS, eos=eos)
    cache.tokens = np.where(cache.tokens == BOS, BOS, 100 + np.arange(cache.num_tokens))
    plan = ConcatPlan(cache, length, 0, shuffle)
    for epoch in (0, 3):
        raw = rows_of(plan, epoch)
        segments, tokens = raw["segment_ids"], raw["tokens"]
        assert tokens.shape == (plan.num_rows, length + 1)
        scored = (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] > 0)
        expected = cache.tokens[cache.tokens != BOS]
        np.testing.assert_array_equal(np.sort(tokens[:, 1:][scored]), expected)
        # What precedes a target is the token before it in its document.
        before = {t: s for s, t in zip(cache.tokens[:-1], cache.tokens[1:], strict=True)}
        for a, b in zip(tokens[:, :-1][scored], tokens[:, 1:][scored], strict=True):
            assert before[b] == a


def test_segments_and_positions_follow_documents():
    cache = FakeCache([3, 1, 4])
    raw = rows_of(ConcatPlan(cache, 6, 0, False))
    flat = cache.tokens
    assert raw["tokens"][0].tolist() == flat[:7].tolist()
    assert raw["segment_ids"][0].tolist() == [1, 1, 1, 1, 1, 2, 2]
    assert raw["positions"][0].tolist() == [0, 1, 2, 3, 4, 0, 1]
    assert raw["segment_ids"][1].tolist() == [1, 1, 2, 2, 2, 2, 2]
    assert raw["positions"][1].tolist() == [0, 1, 0, 1, 2, 3, 4]
    last = raw["tokens"][2]
    assert last[0] == flat[12] and last[1] == EOS and (last[2:] == 0).all()
    assert raw["segment_ids"][2].tolist() == [1, 1, 0, 0, 0, 0, 0]


def test_rows_do_not_depend_on_the_rows_beside_them():
    plan = ConcatPlan(FakeCache(LENGTHS * 5), 9, 0, True)
    whole = rows_of(plan, 2)
    for index in ([4], [7, 1], [0, 1, 2]):
        part = plan.fetch(2, np.array(index))
        for name, array in part.items():
            np.testing.assert_array_equal(array, whole[name][index])


def test_one_long_document_gives_new_windows_each_epoch():
    plan = ConcatPlan(FakeCache([1000]), 32, 0, True)
    windows = [{tuple(row) for row in rows_of(plan, epoch)["tokens"]} for epoch in range(4)]
    assert len(windows[0] & windows[1]) <= 2
    assert {plan.num_rows} == {len(w) for w in windows}
    still = ConcatPlan(FakeCache([1000]), 32, 0, False)
    np.testing.assert_array_equal(rows_of(still, 0)["tokens"], rows_of(still, 1)["tokens"])


def test_epochs_follow_each_other_without_a_gap():
    plan = ConcatPlan(FakeCache(LENGTHS), 8, 0, True)
    n = plan.num_rows
    rows = fetch_rows(plan, np.arange(n - 2, 2 * n + 3))
    assert sorted(rows["example_ids"][2 : 2 + n].tolist()) == list(range(n))
    np.testing.assert_array_equal(rows["tokens"][1], plan.fetch(0, np.array([n - 1]))["tokens"][0])
    np.testing.assert_array_equal(rows["tokens"][2], plan.fetch(1, np.array([0]))["tokens"][0])


def test_mixture_keeps_proportions_and_runs_each_plan_in_order():
    plans = [ConcatPlan(FakeCache([n], seed=n), 4, n, True) for n in (40, 90, 20)]
    mixture = Mixture(plans, [0.5, 0.3, 0.2])
    rows = np.arange(3 * Mixture.PERIOD + 100)
    which, number = mixture.component(rows)
    for k, weight in enumerate([0.5, 0.3, 0.2]):
        np.testing.assert_array_equal(number[which == k], np.arange((which == k).sum()))
        running = np.cumsum(which == k)
        assert np.abs(running - weight * (rows + 1)).max() < 3  # evenly spread at all times
    got = fetch_rows(mixture, rows[50:90])
    for i, row in enumerate(range(50, 90)):
        k = which[row]
        alone = fetch_rows(plans[k], number[row : row + 1])
        np.testing.assert_array_equal(got["tokens"][i], alone["tokens"][0])
        first = sum(plan.num_rows for plan in plans[:k])  # plans do not share ids
        assert got["example_ids"][i] == first + alone["example_ids"][0]
    with pytest.raises(ConfigError, match=r"data\.weights"):
        Mixture(plans, [1.0, 1.0])


def test_mixture_gives_a_rare_plan_its_rows():
    plans = [ConcatPlan(FakeCache([40]), 4, 0, True) for _ in range(3)]
    which, _ = Mixture(plans, [1.0, 1e-6, 1.0]).component(np.arange(Mixture.PERIOD))
    assert np.bincount(which).tolist() in ([2048, 1, 2047], [2047, 1, 2048])


def test_examples_come_once_an_epoch_padded_to_their_width():
    values, offsets = np.arange(1, 11, dtype=np.int32), np.array([0, 3, 3, 4, 10])
    plan = ExamplePlan({"a": (values, offsets, 7)}, {"label": np.arange(4)}, 0, True, {})
    for epoch in range(3):
        raw = rows_of(plan, epoch)
        assert sorted(raw["example_ids"].tolist()) == [0, 1, 2, 3]
        for row, length, example, label in zip(
            raw["a"], raw["a_lengths"], raw["example_ids"], raw["label"], strict=True
        ):
            real = values[offsets[example] : offsets[example + 1]]
            assert length == len(real) and label == example
            assert row.tolist() == [*real, *[0] * (7 - length)]
