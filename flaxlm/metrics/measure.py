"""What a score is a function of, and its percentile bootstrap interval (Efron, 1979).

Examples are resampled with replacement. A score that is a function of counts needs no resampled
lists: equal examples are one cell, the counts of the cells in a resample are multinomial, so a
thousand resamples are one draw and one matrix product: a million exact matches are two cells.
Everything is a function of the examples and `seed`.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence

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


def weighted_sums(counts_RX: np.ndarray, cells_XK: np.ndarray) -> np.ndarray:
    """Return float64 [R, K], the sums of R lists in which cell x stands counts_RX[r, x] times."""
    # Sums of whole numbers are exact in any order. Those of others depend on it, and BLAS's order
    # on the number of threads, so they are added by numpy itself.
    if np.all(cells_XK == np.rint(cells_XK)):
        return counts_RX @ cells_XK
    return np.einsum("rx,xk->rk", counts_RX, cells_XK)


@dataclasses.dataclass(frozen=True)
class Measure:
    """Scores that are functions of how often each kind of example occurs.

    Attributes:
      rows: what the scores need to know of each example, float64 [N, K].
      of: takes counts [R, X] of cells [X, K], distinct rows, and returns {name: scores [R]} of the
        R lists of examples that they are counts of.
      names: the scores that are wanted; empty: all.
      pooled: whether equal rows are one cell.
      then: what is made of a score, and of the ends of its interval: a monotone function.
    """

    rows: np.ndarray
    of: Callable[[np.ndarray, np.ndarray], dict[str, np.ndarray]]
    names: Sequence[str] = ()
    pooled: bool = True
    then: Callable[[float], float] = float

    def only(self, names: Sequence[str]) -> "Measure":
        """Return this measure with some of its scores."""
        return dataclasses.replace(self, names=tuple(names))

    def scores(self) -> dict[str, float]:
        """Return {name: score} of the examples."""
        cells, counts = self._cells()
        values = self._wanted(self.of(counts[None], cells))
        return {name: self.then(float(column[0])) for name, column in values.items()}

    def resampled(self, seed: int = 0, resamples: int = RESAMPLES) -> dict[str, np.ndarray]:
        """Return {name: float64 [R]}, the scores of `resamples` draws, before `then`."""
        cells, counts = self._cells()
        rng, n = np.random.default_rng(seed), len(self.rows)
        chunk = max(1, _CHUNK // len(cells))
        parts = []
        for start in range(0, resamples, chunk):
            size = min(chunk, resamples - start)
            drawn = rng.multinomial(n, counts / n, size=size).astype(np.float64)
            parts.append(self._wanted(self.of(drawn, cells)))
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def intervals(
        self, seed: int = 0, resamples: int = RESAMPLES, confidence: float = CONFIDENCE
    ) -> dict[str, Interval]:
        """Return {name: (low, high)}, the bootstrap interval of each of `scores`."""
        drawn = self.resampled(seed, resamples)
        ends = {name: percentiles(values, confidence) for name, values in drawn.items()}
        return {name: (self.then(low), self.then(high)) for name, (low, high) in ends.items()}

    def _cells(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the distinct rows [X, K], and how many examples have each, float64 [X]."""
        if not self.pooled or self.rows.shape[1] > _WIDEST_CELL:
            return self.rows, np.ones(len(self.rows))
        cells, counts = np.unique(self.rows, axis=0, return_counts=True)
        return cells, counts.astype(np.float64)

    def _wanted(self, values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {name: values[name] for name in self.names or values}


def scores_of(measures: Iterable[Measure]) -> dict[str, float]:
    """Return the scores of all measures."""
    return {name: score for measure in measures for name, score in measure.scores().items()}


def intervals_of(measures: Iterable[Measure], **options) -> dict[str, Interval]:
    """Return the intervals of all measures; see `Measure.intervals`."""
    return {
        name: ends for measure in measures for name, ends in measure.intervals(**options).items()
    }


def mean_measure(name: str, values: Sequence[float] | np.ndarray) -> Measure:
    """Return the measure of the mean of values [N]."""
    check_any(values)
    rows = np.asarray(values, np.float64)[:, None]
    return Measure(
        rows, lambda counts, cells: {name: weighted_sums(counts, cells)[:, 0] / len(rows)}
    )


def ratio_measure(
    name: str,
    totals: Sequence[float] | np.ndarray,
    weights: Sequence[float] | np.ndarray,
    then: Callable[[float], float] = float,
) -> Measure:
    """Return the measure of Σ totals / Σ weights, examples [N] drawn with both."""
    check_lengths(totals, weights)
    rows = np.stack([totals, weights], axis=1).astype(np.float64)
    if not rows[:, 1].any():
        raise DataError("every example weighs 0: there is no token to take the mean over")

    def of(counts, cells):
        total, weight = weighted_sums(counts, cells).T
        return {name: ratio(total, weight)}

    return Measure(rows, of, then=then)


def perplexity(nats: float) -> float:
    """Return exp of the mean nats of a token, at most exp(700), which is still a number in JSON."""
    return float(np.exp(min(nats, 700.0)))


def bits(nats: float) -> float:
    """Return nats in bits: of a byte, they are comparable between vocabularies."""
    return float(nats / np.log(2))
