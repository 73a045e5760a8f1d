"""Scores of a task, once, on the host, over a whole split, each with a bootstrap interval.

The percentile bootstrap (Efron, 1979) resamples examples with replacement. A score that is a
function of counts needs no resampled lists: the counts of a resample are multinomial, so a
thousand resamples are one draw and a few array operations whatever the size of the split.
"""

from collections.abc import Callable, Sequence

import numpy as np

from flaxlm.errors import DataError

RESAMPLES = 1000
CONFIDENCE = 0.95

Interval = tuple[float, float]


def _pairs(predictions: Sequence[int], golds: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Return both as int64 [N]; DataError when they cannot be compared."""
    _check_lengths(predictions, golds)
    return np.asarray(predictions, np.int64), np.asarray(golds, np.int64)


def _check_lengths(predictions: Sequence, golds: Sequence) -> None:
    if len(predictions) != len(golds):
        raise DataError(
            f"{len(predictions)} predictions for {len(golds)} examples: one is needed for each"
        )
    if not len(golds):
        raise DataError("no examples to score: check the split and the task's columns")


def _percentiles(values: np.ndarray, confidence: float) -> Interval:
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(values, [tail, 1.0 - tail])
    return float(low), float(high)


def classification_scores(predictions: Sequence[int], golds: Sequence[int]) -> dict[str, float]:
    """Return accuracy, and macro and micro precision, recall and F1, by scikit-learn.

    Macro averages run over the labels that occur among `golds` or `predictions` [N]; a precision
    or recall without a denominator counts as 0.
    """
    from sklearn.metrics import accuracy_score, precision_recall_fscore_support

    predicted, gold = _pairs(predictions, golds)
    scores = {"accuracy": float(accuracy_score(gold, predicted))}
    for average in ("macro", "micro"):
        values = precision_recall_fscore_support(
            gold, predicted, average=average, zero_division=0.0
        )
        for name, value in zip(("precision", "recall", "f1"), values[:3], strict=True):
            scores[f"{name}_{average}"] = float(value)
    return scores


def _scores_of_counts(
    counts_RX: np.ndarray, gold_X: np.ndarray, predicted_X: np.ndarray, classes: int
) -> dict[str, np.ndarray]:
    """Return `classification_scores` [R] of R weighted lists of X distinct (gold, predicted)."""
    one_hot = np.eye(classes)
    hit = counts_RX @ (one_hot[gold_X] * (gold_X == predicted_X)[:, None])
    gold = counts_RX @ one_hot[gold_X]
    predicted = counts_RX @ one_hot[predicted_X]
    present = (gold + predicted) > 0

    def mean(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
        per_class = np.divide(top, bottom, out=np.zeros_like(top), where=bottom > 0)
        return (per_class * present).sum(axis=1) / present.sum(axis=1)

    # With one label an example, every micro average is the accuracy.
    accuracy = hit.sum(axis=1) / counts_RX.sum(axis=1)
    micro = {f"{name}_micro": accuracy for name in ("precision", "recall", "f1")}
    return {
        "accuracy": accuracy,
        "precision_macro": mean(hit, predicted),
        "recall_macro": mean(hit, gold),
        "f1_macro": mean(2.0 * hit, gold + predicted),
        **micro,
    }


def classification_intervals(
    predictions: Sequence[int],
    golds: Sequence[int],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
) -> dict[str, Interval]:
    """Return {name: (low, high)} for every name of `classification_scores`."""
    predicted, gold = _pairs(predictions, golds)
    labels, codes = np.unique(np.stack([gold, predicted]), return_inverse=True)
    cells, counts = np.unique(codes.reshape(2, -1), axis=1, return_counts=True)
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(len(gold), counts / len(gold), size=resamples).astype(np.float64)
    scores = _scores_of_counts(drawn, cells[0], cells[1], len(labels))
    return {name: _percentiles(values, confidence) for name, values in scores.items()}


def rouge_l(predictions: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """Return ROUGE-L F1 [N] of each text (Lin, 2004), by rouge-score with Porter stemming."""
    from rouge_score.rouge_scorer import RougeScorer

    _check_lengths(predictions, references)
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    pairs = zip(references, predictions, strict=True)
    return np.array([scorer.score(gold, text)["rougeL"].fmeasure for gold, text in pairs])


def exact_match(predictions: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """Return float64 [N], 1 where the texts are equal apart from runs of white space."""
    _check_lengths(predictions, references)
    pairs = zip(predictions, references, strict=True)
    return np.array([float(a.split() == b.split()) for a, b in pairs])


TEXT_SCORES: dict[str, Callable[[Sequence[str], Sequence[str]], np.ndarray]] = {
    "rouge_l": rouge_l,
    "exact_match": exact_match,
}


def mean_interval(
    values: np.ndarray,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
) -> Interval:
    """Return the bootstrap interval of the mean of values [N]."""
    values = np.asarray(values, np.float64)
    if not values.size:
        raise DataError("no examples to score: check the split and the task's columns")
    # Equal values are one multinomial cell: a million exact matches are two.
    distinct, counts = np.unique(values, return_counts=True)
    rng = np.random.default_rng(seed)
    means = np.empty(resamples)
    chunk = max(1, 2**22 // len(distinct))
    for start in range(0, resamples, chunk):
        size = min(chunk, resamples - start)
        drawn = rng.multinomial(len(values), counts / len(values), size=size)
        means[start : start + size] = drawn @ distinct / len(values)
    return _percentiles(means, confidence)


def ratio_interval(
    totals: np.ndarray,
    weights: np.ndarray,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
) -> Interval:
    """Return the bootstrap interval of Σ totals / Σ weights, examples [N] drawn with both."""
    pairs = np.stack([totals, weights], axis=1).astype(np.float64)
    if not len(pairs):
        raise DataError("no examples to score: check the split and the task's columns")
    rng = np.random.default_rng(seed)
    drawn = [rng.integers(0, len(pairs), len(pairs)) for _ in range(resamples)]
    sums = np.array([pairs[rows].sum(axis=0) for rows in drawn])
    return _percentiles(sums[:, 0] / sums[:, 1], confidence)


def reliability(probabilities: np.ndarray, golds: Sequence[int], bins: int = 15):
    """Return (confidence, accuracy, count) [bins]: what the best label's probability is worth.

    Bins are equally wide (Guo et al., 2017, section 2); an empty one has means of 0.

    Args:
      probabilities: [N, C].
      golds: label ids [N].
      bins: number of them.
    """
    probabilities = np.asarray(probabilities, np.float64)
    _check_lengths(probabilities, golds)
    sure = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == np.asarray(golds)
    place = np.clip(np.ceil(sure * bins).astype(np.int64) - 1, 0, bins - 1)
    count = np.bincount(place, minlength=bins)
    full = np.maximum(count, 1)
    confidence = np.bincount(place, weights=sure, minlength=bins) / full
    return confidence, np.bincount(place, weights=right, minlength=bins) / full, count
