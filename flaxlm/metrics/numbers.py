"""Scores of numbers: correlations and errors of a regression."""

from collections.abc import Iterable, Sequence

import numpy as np

from flaxlm.errors import DataError
from flaxlm.metrics.measure import RESAMPLES, Measure, check_lengths


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


def _ranks(codes: np.ndarray, distinct: int) -> np.ndarray:
    """Return the mean rank of each value, given its place among the distinct ones."""
    # A resample holds values of the split alone, so it is ranked by counting, without a sort.
    counts = np.bincount(codes, minlength=distinct)
    return (np.cumsum(counts) - (counts - 1) / 2.0)[codes]


class _Regression(Measure):
    """Scores of pairs of numbers, rows [N, 2]; resamples are drawn example by example."""

    def resampled(self, seed: int = 0, resamples: int = RESAMPLES) -> dict[str, np.ndarray]:
        """Return {name: float64 [R]}, the scores of `resamples` draws."""
        rng, n = np.random.default_rng(seed), len(self.rows)
        return self._over(rng.integers(0, n, n) for _ in range(resamples))

    def scores(self) -> dict[str, float]:
        """Return {name: score} of the examples."""
        values = self._over([np.arange(len(self.rows))])
        return {name: float(column[0]) for name, column in values.items()}

    def _over(self, draws: Iterable[np.ndarray]) -> dict[str, np.ndarray]:
        predicted, gold = self.rows.T
        values_p, codes_p = np.unique(predicted, return_inverse=True)
        values_g, codes_g = np.unique(gold, return_inverse=True)

        def statistic(rows: np.ndarray) -> dict[str, float]:
            ranks = _ranks(codes_p[rows], len(values_p)), _ranks(codes_g[rows], len(values_g))
            error = predicted[rows] - gold[rows]
            return {
                "pearson": _correlation(predicted[rows], gold[rows]),
                "spearman": _correlation(*ranks),
                "mse": np.mean(error * error),
                "mae": np.mean(np.abs(error)),
            }

        drawn = [statistic(rows) for rows in draws]
        return self._wanted({name: np.array([d[name] for d in drawn]) for name in drawn[0]})


def regression_measure(predictions: Sequence[float], golds: Sequence[float]) -> Measure:
    """Return the measure of numbers [N]: `pearson`, `spearman`, `mse`, `mae`.

    Ties share their mean rank. A correlation with a constant is not defined and counts as 0, what
    a system that says the same of everything deserves.
    """
    return _Regression(np.stack(_numbers(predictions, golds), axis=1), lambda counts, cells: {})
