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

RESAMPLES = 1000
CONFIDENCE = 0.95

Interval = tuple[float, float]
Numbers = Sequence[float] | np.ndarray

# Which way each score is better.
MORE = (
    *("accuracy", "precision", "recall", "f1", "exact_match", "matthews", "pearson", "spearman"),
    *("rouge_1", "rouge_2", "rouge_l", "bleu", "chrf", "lm", "icat"),
)
LESS = (
    *("loss", "mlm", "nsp", "perplexity", "word_perplexity", "bits_per_byte", "ece", "brier"),
    *("mse", "mae", "unparsed", "cut"),
)
SCORES = (*MORE, *LESS)
# What stands before or behind a score's name where it is of a part, or a variant of another.
BEFORE = ("best_", "subset_", "tag_", "mlm_", "nsp_", "token_")
BEHIND = ("_macro", "_micro", "_has_answer", "_no_answer", "_low", "_high")

# Wider rows than these hardly repeat, and sorting them to find out takes longer than the draw.
_WIDEST_CELL = 64
_CHUNK = 2**22


def check_lengths(predictions: Sequence, golds: Sequence) -> None:
    """Raise DataError unless there is one prediction for each of at least one example."""
    if len(predictions) != len(golds):
        raise DataError(
            f"{len(predictions)} predictions for {len(golds)} examples: one is needed for each"
        )
    if not len(golds):
        raise DataError("no examples to score: check the split and the task's columns")


def ratio(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    """Return top / bottom in float64, 0 where the bottom is 0."""
    top, bottom = np.asarray(top, np.float64), np.asarray(bottom, np.float64)
    return np.divide(top, bottom, out=np.zeros(np.broadcast(top, bottom).shape), where=bottom != 0)


def precision_recall_f1(
    hit: np.ndarray, predicted: np.ndarray, gold: np.ndarray
) -> dict[str, np.ndarray]:
    """Return the three scores of counts; what has no denominator counts as 0."""
    f1 = ratio(2.0 * hit, predicted + gold)
    return {"precision": ratio(hit, predicted), "recall": ratio(hit, gold), "f1": f1}


def macro_and_micro(
    hit_RC: np.ndarray, predicted_RC: np.ndarray, gold_RC: np.ndarray
) -> dict[str, np.ndarray]:
    """Return precision, recall and F1 [R], each macro and micro, of counts by class.

    The macro average runs over the classes that occur (predicted + gold > 0), and is 0 where none
    does.
    """
    counts = hit_RC, predicted_RC, gold_RC
    occurring = ((predicted_RC + gold_RC) > 0).sum(axis=1)
    macro = precision_recall_f1(*counts)
    micro = precision_recall_f1(*(count.sum(axis=1) for count in counts))
    averages = {f"{name}_macro": ratio(v.sum(axis=1), occurring) for name, v in macro.items()}
    return averages | {f"{name}_micro": v for name, v in micro.items()}


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
    """Scores that are functions of how often each kind of example occurs."""

    rows: np.ndarray  # what the scores need to know of each example, float64 [N, K]
    # Takes counts [R, X] of cells [X, K], distinct rows, and returns {name: scores [R]} of the
    # R lists of examples that they are counts of.
    of: Callable[[np.ndarray, np.ndarray], dict[str, np.ndarray]]
    names: Sequence[str] = ()  # the scores that are wanted; empty: all
    pooled: bool = True  # whether equal rows are one cell
    then: Callable[[float], float] = float  # made of a score and its interval's ends; monotone

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
    return {name: ends for m in measures for name, ends in m.intervals(**options).items()}


def mean_measure(name: str, values: Numbers) -> Measure:
    """Return the measure of the mean of values [N]."""
    check_lengths(values, values)
    rows = np.asarray(values, np.float64)[:, None]
    return Measure(
        rows, lambda counts, cells: {name: weighted_sums(counts, cells)[:, 0] / len(rows)}
    )


def ratio_measure(
    name: str, totals: Numbers, weights: Numbers, then: Callable[[float], float] = float
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


def direction(metric: str) -> str:
    """Return `max` where more of a score is better, `min` where less is, '' where nobody knows.

    Its name may end in the group that it is of: accuracy/category=pets.
    """
    name = metric.partition("/")[0]
    for prefix in BEFORE:
        name = name.removeprefix(prefix)
    for suffix in BEHIND:
        name = name.removesuffix(suffix)
    return "max" if name in MORE else "min" if name in LESS else ""
