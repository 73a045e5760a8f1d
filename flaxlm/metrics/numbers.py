"""Scores of numbers: correlations and errors of a regression."""

from collections.abc import Sequence

import numpy as np

from flaxlm.errors import DataError
from flaxlm.metrics.bootstrap import (
    CONFIDENCE,
    RESAMPLES,
    Interval,
    check_lengths,
    intervals_of,
    resampled,
)


def _numbers(predictions: Sequence[float], golds: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Return both as float64 [N]; DataError when they cannot be compared."""
    check_lengths(predictions, golds)
    arrays = np.asarray(predictions, np.float64), np.asarray(golds, np.float64)
    for array, what in zip(arrays, ("prediction", "gold score"), strict=True):
        if array.ndim != 1:
            raise DataError(f"each {what} must be one number")
        if not np.isfinite(array).all():
            at = int(np.argmin(np.isfinite(array)))
            raise DataError(f"the {what} of example {at} is {array[at]}")
    return arrays


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Return Pearson's correlation, 0 where one side is constant.

    scipy's adds by BLAS, whose last bits depend on the number of threads.
    """
    if a.min() == a.max() or b.min() == b.max():
        return 0.0
    a, b = a - a.mean(), b - b.mean()
    r = (a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum())
    return float(np.clip(r, -1.0, 1.0))


def regression_scores(predictions: Sequence[float], golds: Sequence[float]) -> dict[str, float]:
    """Return `pearson`, `spearman` (ties share their mean rank), `mse` and `mae` of numbers [N].

    A correlation with a constant is not defined and counts as 0, what a system that says the same
    of everything deserves.

    Raises:
      DataError: the lists differ in length or are empty, or hold a NaN or an infinity.
    """
    from scipy.stats import rankdata

    predicted, gold = _numbers(predictions, golds)
    return {
        "pearson": _correlation(predicted, gold),
        "spearman": _correlation(rankdata(predicted), rankdata(gold)),
        "mse": float(np.mean((predicted - gold) ** 2)),
        "mae": float(np.mean(np.abs(predicted - gold))),
    }


def _ranks(codes: np.ndarray, distinct: int) -> np.ndarray:
    """Return the mean rank of each value, given its place among the distinct ones.

    A resample holds values of the split alone, so it is ranked by counting, without a sort.
    """
    counts = np.bincount(codes, minlength=distinct)
    return (np.cumsum(counts) - (counts - 1) / 2.0)[codes]


def regression_intervals(
    predictions: Sequence[float],
    golds: Sequence[float],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
) -> dict[str, Interval]:
    """Return {name: (low, high)} for every name of `regression_scores`."""
    predicted, gold = _numbers(predictions, golds)
    values_p, codes_p = np.unique(predicted, return_inverse=True)
    values_g, codes_g = np.unique(gold, return_inverse=True)

    def statistic(rows: np.ndarray) -> tuple[float, float, float, float]:
        error = predicted[rows] - gold[rows]
        return (
            _correlation(predicted[rows], gold[rows]),
            _correlation(
                _ranks(codes_p[rows], len(values_p)), _ranks(codes_g[rows], len(values_g))
            ),
            np.mean(error * error),
            np.mean(np.abs(error)),
        )

    drawn = resampled(statistic, len(gold), seed=seed, resamples=resamples)
    return intervals_of(
        dict(zip(("pearson", "spearman", "mse", "mae"), drawn.T, strict=True)), confidence
    )
