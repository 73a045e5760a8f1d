"""Percentile bootstrap intervals (Efron, 1979): examples are resampled with replacement.

A score that is a function of sums over examples needs no resampled lists. Equal examples are one
cell, the counts of the cells in a resample are multinomial, so a thousand resamples are one draw
and one matrix product: a million exact matches are two cells. A score that is not (Spearman) takes
index draws. Everything is a function of the examples and `seed`.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from flaxlm.errors import DataError
from flaxlm.metrics.counts import ratio

RESAMPLES = 1000
CONFIDENCE = 0.95

Interval = tuple[float, float]

# Wider rows than these hardly repeat, and sorting them to find out takes longer than the draw.
_WIDEST_CELL = 64
_CHUNK = 2**22


def check_lengths(predictions: Sequence, golds: Sequence) -> None:
    """Raise DataError unless there is one prediction for each of at least one example."""
    if len(predictions) != len(golds):
        raise DataError(
            f"{len(predictions)} predictions for {len(golds)} examples: one is needed for each"
        )
    check_any(golds)


def check_any(examples: Sequence) -> None:
    """Raise DataError where there is no example."""
    if not len(examples):
        raise DataError("no examples to score: check the split and the task's columns")


def percentiles(values: np.ndarray, confidence: float = CONFIDENCE) -> Interval:
    """Return the interval that holds the middle `confidence` of resampled values [R]."""
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(values, [tail, 1.0 - tail])
    return float(low), float(high)


def intervals_of(
    values: Mapping[str, np.ndarray], confidence: float = CONFIDENCE
) -> dict[str, Interval]:
    """Return {name: (low, high)} of {name: resampled values [R]}."""
    return {name: percentiles(column, confidence) for name, column in values.items()}


def resampled(
    statistic: Callable[[np.ndarray], Sequence[float]],
    n: int,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> np.ndarray:
    """Return statistic(rows) [R, K] of R draws of n rows (int64 [n]) out of n, with repeats."""
    rng = np.random.default_rng(seed)
    return np.array([statistic(rng.integers(0, n, n)) for _ in range(resamples)])


def resampled_sums(
    columns_NK: np.ndarray, *, seed: int = 0, resamples: int = RESAMPLES
) -> np.ndarray:
    """Return float64 [R, K], the sums over R resamples of N examples of K numbers each."""
    columns_NK = np.asarray(columns_NK, np.float64)
    check_any(columns_NK)
    n, width = columns_NK.shape
    if width > _WIDEST_CELL:
        cells_XK, counts = columns_NK, np.ones(n)
    else:
        cells_XK, counts = np.unique(columns_NK, axis=0, return_counts=True)
    # Sums of whole numbers are exact in any order. Those of others depend on it, and BLAS's order
    # on the number of threads, so they are added by numpy itself.
    whole = bool(np.all(cells_XK == np.rint(cells_XK)))
    rng = np.random.default_rng(seed)
    sums = np.empty((resamples, width))
    chunk = max(1, _CHUNK // len(cells_XK))
    for start in range(0, resamples, chunk):
        size = min(chunk, resamples - start)
        drawn_RX = rng.multinomial(n, counts / n, size=size).astype(np.float64)
        product = drawn_RX @ cells_XK if whole else np.einsum("rx,xk->rk", drawn_RX, cells_XK)
        sums[start : start + size] = product
    return sums


def mean_interval(
    values: Sequence[float] | np.ndarray,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
) -> Interval:
    """Return the bootstrap interval of the mean of values [N]."""
    values = np.asarray(values, np.float64)
    check_any(values)
    sums = resampled_sums(values[:, None], seed=seed, resamples=resamples)
    return percentiles(sums[:, 0] / len(values), confidence)


def ratio_interval(
    totals: Sequence[float] | np.ndarray,
    weights: Sequence[float] | np.ndarray,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
) -> Interval:
    """Return the bootstrap interval of Σ totals / Σ weights, examples [N] drawn with both."""
    check_lengths(totals, weights)
    pairs = np.stack([totals, weights], axis=1).astype(np.float64)
    if not pairs[:, 1].any():
        raise DataError("every example weighs 0: there is no token to take the mean over")
    sums = resampled_sums(pairs, seed=seed, resamples=resamples)
    return percentiles(ratio(sums[:, 0], sums[:, 1]), confidence)
