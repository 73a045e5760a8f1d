"""Comparisons of two systems: exact by hand where small, right as often as they say where not."""

import math
from itertools import pairwise, product

import numpy as np
import pytest

from flaxlm.errors import ConfigError, DataError
from flaxlm.metrics.paired import mcnemar, over_seeds, paired_bootstrap, paired_t


def test_paired_bootstrap_gives_the_difference_and_brackets_it():
    rng = np.random.default_rng(0)
    b = rng.random(400)
    a = b + rng.normal(0.05, 0.2, 400)
    found = paired_bootstrap(a, b)
    assert found.difference == pytest.approx(np.mean(a) - np.mean(b))
    assert found.low < found.difference < found.high
    draws = rng.integers(0, 400, (4000, 400))
    low, high = np.quantile((a - b)[draws].mean(axis=1), [0.025, 0.975])
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.003)
    assert found == paired_bootstrap(a.tolist(), tuple(b))
    # The mean of so many is all but normal, and so is its chance to be as far from 0.
    error = np.std(a - b) / math.sqrt(400)
    for shift in (0.0, 0.01, 0.02):
        moved = paired_bootstrap(a - np.mean(a - b) + shift, b, resamples=10_000)
        assert moved.p == pytest.approx(math.erfc(shift / error / math.sqrt(2)), abs=0.02)
    # The systems share their hard examples: unpaired, the same difference would tell nothing.
    back = paired_bootstrap(b, a)
    assert back.difference == -found.difference
    assert back.p == pytest.approx(found.p, abs=0.01)


def test_paired_bootstrap_without_a_difference_finds_one_as_often_as_p_says():
    rng = np.random.default_rng(1)
    ps = []
    for trial in range(400):
        a, b = rng.exponential(1, (2, 100))
        ps.append(paired_bootstrap(a, b, seed=trial, resamples=200).p)
    assert 0.02 <= np.mean(np.array(ps) <= 0.05) <= 0.09
    assert 0.4 <= np.mean(np.array(ps) <= 0.5) <= 0.6


def test_paired_bootstrap_of_equals_and_of_always_better():
    assert paired_bootstrap([1, 0, 1], [1, 0, 1]) == (0.0, 0.0, 0.0, 1.0)
    better = paired_bootstrap([1.0] * 50, [0.0] * 50)
    assert better == (1.0, 1.0, 1.0, pytest.approx(1 / 1001))


def test_mcnemar_is_the_chance_of_as_uneven_coin_tosses():
    a = [1] * 9 + [0] * 3 + [1] * 20 + [0] * 10
    b = [0] * 9 + [1] * 3 + [1] * 20 + [0] * 10
    found = mcnemar(a, b)
    # All ways that twelve tosses fall, those counted that are at least as uneven.
    uneven = sum(abs(sum(tosses) - 6) >= 3 for tosses in product((0, 1), repeat=12))
    assert found == (9, 3, pytest.approx(uneven / 2**12))
    assert mcnemar(b, a) == (3, 9, pytest.approx(found.p))
    assert mcnemar([True, False], [True, False]) == (0, 0, 1.0)
    with pytest.raises(DataError, match="0 or 1"):
        mcnemar([0.5], [1])


def test_over_seeds_gives_mean_spread_and_best():
    found = over_seeds([0.8, 0.9, 0.85])
    assert found == pytest.approx((0.85, 0.05, 0.9))
    assert over_seeds([0.8, 0.9, 0.85], mode="min").best == 0.8
    with pytest.raises(DataError, match="at least two"):
        over_seeds([0.8])
    with pytest.raises(ConfigError, match="max, min"):
        over_seeds([0.8, 0.9], mode="most")


def test_paired_t_is_students():
    a, b = [0.91, 0.90, 0.93, 0.92, 0.90], [0.89, 0.90, 0.90, 0.91, 0.87]
    found = paired_t(a, b)
    apart = np.subtract(a, b)
    error = apart.std(ddof=1) / math.sqrt(5)
    # 2.776445 is the 97.5 % point of Student's t with four degrees of freedom.
    expected = apart.mean() - 2.776445 * error, apart.mean() + 2.776445 * error
    assert found.difference == pytest.approx(apart.mean())
    assert (found.low, found.high) == pytest.approx(expected, rel=1e-5)
    # The interval that just touches 0 is the one of confidence 1 - p.
    low, high = paired_t(a, b, confidence=1 - found.p)[1:3]
    assert min(abs(low), abs(high)) == pytest.approx(0.0, abs=1e-12)
    wider = [paired_t(a, b, confidence=c) for c in (0.5, 0.9, 0.99)]
    assert all(y.low < x.low and y.high > x.high for x, y in pairwise(wider))


@pytest.mark.filterwarnings("error")
def test_paired_t_of_a_constant_difference_has_no_spread_and_no_warning():
    assert paired_t([1.0, 2.0], [1.0, 2.0]) == (0.0, 0.0, 0.0, 1.0)
    assert paired_t([2.0, 3.0], [1.0, 2.0]) == (1.0, 1.0, 1.0, 0.0)
    with pytest.raises(DataError, match="at least two"):
        paired_t([1.0], [2.0])


def test_paired_comparisons_want_the_same_examples():
    for compare in (paired_bootstrap, mcnemar, paired_t):
        with pytest.raises(DataError, match="2 predictions for 1 examples"):
            compare([1, 0], [1])
        with pytest.raises(DataError, match="no examples"):
            compare([], [])
