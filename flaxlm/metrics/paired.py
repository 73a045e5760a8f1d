"""Is one system better than another? Two on the same examples, or several seeds of each."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from flaxlm.errors import DataError, choose
from flaxlm.metrics.measure import CONFIDENCE, RESAMPLES, check_lengths, mean_measure, percentiles


class Difference(NamedTuple):
    """The mean of a − b, its interval, and the p-value of "there is none", two-sided."""

    difference: float
    low: float
    high: float
    p: float


class McNemar(NamedTuple):
    """Examples that only a, or only b, has right, and the two-sided p-value of "as many"."""

    only_a: int
    only_b: int
    p: float


class Seeds(NamedTuple):
    """A score over seeds: its mean, its standard deviation (n − 1), and the best one."""

    mean: float
    sd: float
    best: float


def paired_bootstrap(
    scores_a: Sequence[float],
    scores_b: Sequence[float],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
) -> Difference:
    """Return the difference of two systems' scores [N] on the same examples, in the same order.

    Examples are drawn with both scores (Koehn, 2004). Under "no difference" the mean strays from 0
    as a resample's strays from the mean itself, so p is the share of resamples that stray at least
    as far as the difference is large, (1 + those) / (1 + all) (Davison & Hinkley, 1997, 4.4).
    """
    check_lengths(scores_a, scores_b)
    apart = np.asarray(scores_a, np.float64) - np.asarray(scores_b, np.float64)
    difference = float(apart.mean())
    means = mean_measure("apart", apart).resampled(seed, resamples)["apart"]
    strays = int((np.abs(means - difference) >= abs(difference)).sum())
    low, high = percentiles(means, confidence)
    return Difference(difference, low, high, (1 + strays) / (1 + resamples))


def mcnemar(right_a: Sequence[bool], right_b: Sequence[bool]) -> McNemar:
    """Return McNemar's exact test (1947) of two systems right or wrong [N] on the same examples.

    What both have right or wrong tells nothing; the rest are coin tosses where the two are equal.
    """
    from scipy.stats import binomtest

    check_lengths(right_a, right_b)
    a, b = np.asarray(right_a), np.asarray(right_b)
    if not (np.isin(a, (0, 1)).all() and np.isin(b, (0, 1)).all()):
        raise DataError("McNemar's test compares right and wrong: every score must be 0 or 1")
    only_a, only_b = int(((a == 1) & (b == 0)).sum()), int(((a == 0) & (b == 1)).sum())
    tossed = only_a + only_b
    p = float(binomtest(only_a, tossed, 0.5).pvalue) if tossed else 1.0
    return McNemar(only_a, only_b, p)


def _of_seeds(scores: Sequence[float]) -> np.ndarray:
    values = np.asarray(scores, np.float64)
    if len(values) < 2:
        raise DataError(f"{len(values)} seed(s): a spread needs at least two")
    return values


def over_seeds(scores: Sequence[float], mode: str = "max") -> Seeds:
    """Return the mean, deviation and best of a score of at least two seeds [S].

    `mode` is 'max' where more is better, 'min' where less is.
    """
    choose("mode", mode, ("max", "min"))
    values = _of_seeds(scores)
    best = values.max() if mode == "max" else values.min()
    return Seeds(float(values.mean()), float(values.std(ddof=1)), float(best))


def paired_t(
    scores_a: Sequence[float], scores_b: Sequence[float], *, confidence: float = CONFIDENCE
) -> Difference:
    """Return the difference of two systems over the same seeds [S], by Student's paired t.

    Where every seed differs by the same amount there is no spread to judge by: the interval is the
    difference itself, and p is 0, or 1 where there is no difference.
    """
    from scipy.stats import ttest_rel

    check_lengths(scores_a, scores_b)
    a, b = _of_seeds(scores_a), _of_seeds(scores_b)
    difference = float((a - b).mean())
    if np.ptp(a - b) == 0.0:
        return Difference(difference, difference, difference, float(difference == 0.0))
    test = ttest_rel(a, b)
    low, high = test.confidence_interval(confidence)
    return Difference(difference, float(low), float(high), float(test.pvalue))
