"""Scores of labels: one of a set for each example, or any number of them; and calibration."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from flaxlm.errors import DataError
from flaxlm.metrics.measure import (
    Measure,
    check_lengths,
    macro_and_micro,
    precision_recall_f1,
    ratio,
    weighted_sums,
)

BINS = 15
Ids = Sequence[int]


def _labels(values: Sequence[int], what: str) -> np.ndarray:
    array = np.asarray(values)
    if array.ndim != 1 or array.dtype.kind not in "iub":
        raise DataError(f"{what} must be label ids, one whole number for each example")
    if array.min() < 0:
        at = int(np.argmin(array))
        raise DataError(f"{what}: example {at} has the label {array[at]}; ids count from 0")
    return array.astype(np.int64)


def classification_measure(predictions: Ids, golds: Ids, *, classes: int | None = None) -> Measure:
    """Return the measure of one label an example, given label ids [N] and how many there are.

    Its scores are `accuracy`; `precision`, `recall`, `f1`, each `_macro` (over the labels that
    occur) and `_micro`; `matthews`, the correlation coefficient (0 where either side has one label
    only). For two labels (without `classes`: where no gold one is above 1) also `precision`,
    `recall` and `f1` of label 1, as GLUE reports for MRPC and QQP.
    """
    check_lengths(predictions, golds)
    predicted, gold = _labels(predictions, "predictions"), _labels(golds, "gold labels")
    # By the gold labels alone, so that every system's scores have the same names.
    binary = (classes or gold.max() + 1) <= 2
    # With two labels, code 1 has to be label 1 even where only one of them occurs.
    labels = np.unique(np.concatenate([gold, predicted, [0, 1] if binary else gold[:0]]))
    codes = np.searchsorted(labels, np.stack([gold, predicted], axis=1))

    def of(counts, cells):
        gold_X, predicted_X = cells.T.astype(np.int64)
        return scores_of_counts(counts, gold_X, predicted_X, len(labels), binary)

    return Measure(codes.astype(np.float64), of)


def scores_of_counts(
    counts_RX: np.ndarray,
    gold_X: np.ndarray,
    predicted_X: np.ndarray,
    classes: int,
    binary: bool = False,
) -> dict[str, np.ndarray]:
    """Return {name: scores [R]} of R weighted lists of X distinct (gold, predicted)."""
    one_hot = np.eye(classes)
    hit = counts_RX @ (one_hot[gold_X] * (gold_X == predicted_X)[:, None])
    gold = counts_RX @ one_hot[gold_X]
    predicted = counts_RX @ one_hot[predicted_X]
    total, right = counts_RX.sum(axis=1), hit.sum(axis=1)
    scores = {"accuracy": right / total, **macro_and_micro(hit, predicted, gold)}
    if binary:
        scores |= precision_recall_f1(hit[:, 1], predicted[:, 1], gold[:, 1])
    # The R_K of Gorodkin (2004), equation 8, in counts.
    together = right * total - (gold * predicted).sum(axis=1)
    spread = (total**2 - (gold**2).sum(axis=1)) * (total**2 - (predicted**2).sum(axis=1))
    return scores | {"matthews": ratio(together, np.sqrt(spread))}


def _indicators(predictions: Sequence, golds: Sequence) -> tuple[np.ndarray, np.ndarray]:
    """Return both as bool [N, C]; DataError when they cannot be compared."""
    check_lengths(predictions, golds)
    predicted, gold = np.asarray(predictions), np.asarray(golds)
    for array, what in ((predicted, "predictions"), (gold, "gold labels")):
        if array.ndim != 2 or array.shape[1] < 2 or not np.isin(array, (0, 1)).all():
            raise DataError(f"{what} must be true or false for each of at least two labels")
    if predicted.shape != gold.shape:
        raise DataError(f"{predicted.shape[1]} labels predicted where there are {gold.shape[1]}")
    return predicted.astype(bool), gold.astype(bool)


def multilabel_measure(predictions: Sequence, golds: Sequence) -> Measure:
    """Return the measure of any number of labels an example, bool [N, C] on both sides.

    Its scores are `subset_accuracy`, the share of examples with every label right; `precision`,
    `recall` and `f1`, each `_macro` over all C labels and `_micro`. What has no denominator counts
    as 0.
    """
    predicted, gold = _indicators(predictions, golds)
    right = (predicted == gold).all(axis=1)
    columns = np.concatenate([predicted & gold, predicted, gold, right[:, None]], axis=1)

    def of(counts, cells):
        sums = weighted_sums(counts, cells)
        hit, said, real = np.split(sums[:, :-1], 3, axis=1)
        scores = macro_and_micro(hit, said, real)
        # Over all labels: one that never occurs counts as 0.
        occurring = ((said + real) > 0).mean(axis=1)
        scores |= {name: v * occurring for name, v in scores.items() if name.endswith("_macro")}
        return {"subset_accuracy": sums[:, -1] / len(gold), **scores}

    return Measure(columns.astype(np.float64), of)


def _probabilities(probabilities: Sequence, golds: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Return float64 [N, C] and int64 [N]; DataError when the rows are no probabilities."""
    check_lengths(probabilities, golds)
    chances, gold = np.asarray(probabilities, np.float64), _labels(golds, "gold labels")
    if chances.ndim != 2:
        raise DataError("probabilities must be a row for each example, a column for each label")
    # Half precision sums to 1 within 1e-2. `not` so that NaN is caught.
    bad = ~((chances >= 0).all(axis=1) & (np.abs(chances.sum(axis=1) - 1.0) < 1e-2))
    if bad.any():
        at = int(np.argmax(bad))
        raise DataError(f"the probabilities of example {at} do not sum to 1: {chances[at]}")
    if gold.max() >= chances.shape[1]:
        at = int(np.argmax(gold))
        raise DataError(
            f"example {at} has the gold label {gold[at]}, and there are {chances.shape[1]} labels"
        )
    return chances, gold


class Reliability(NamedTuple):
    """A reliability diagram: three numbers [bins] for each bin of confidence, from low to high."""

    confidence: np.ndarray  # mean probability of the predicted label; 0 in an empty bin
    accuracy: np.ndarray  # share of right predictions; 0 in an empty bin
    count: np.ndarray  # of examples


def _binned(chances: np.ndarray, gold: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return the confidence [N], whether right [N], and the bin [N] of each example."""
    predicted = chances.argmax(axis=1)
    confidence = chances[np.arange(len(gold)), predicted]
    # Bin m holds ((m - 1) / bins, m / bins], as Guo et al. have it.
    place = np.searchsorted(np.linspace(0.0, 1.0, BINS + 1)[1:-1], confidence, side="left")
    return confidence, predicted == gold, place


def reliability(probabilities: Sequence, golds: Sequence[int]) -> Reliability:
    """Return the diagram of probabilities [N, C] against gold labels [N]."""
    confidence, right, place = _binned(*_probabilities(probabilities, golds))
    count = np.bincount(place, minlength=BINS)
    sums = (np.bincount(place, values, BINS) for values in (confidence, right))
    return Reliability(*(ratio(total, count) for total in sums), count)


def calibration_measure(probabilities: Sequence, golds: Sequence[int]) -> Measure:
    """Return the measure of how far probabilities [N, C] can be believed, 0 being best.

    `ece`, the expected calibration error (Guo et al., 2017, equation 3), is |accuracy − confidence|
    of the predicted label, in 15 equal bins, weighted by their examples; its interval lies somewhat
    high on small splits, since resampling adds noise to every bin. `brier` (Brier, 1950) is the
    squared error summed over the labels and averaged over the examples, so 0 to 2.
    """
    chances, gold = _probabilities(probabilities, golds)
    confidence, right, place = _binned(chances, gold)
    # Right minus confidence in the example's bin, and its Brier score.
    columns = np.zeros((len(gold), BINS + 1))
    columns[np.arange(len(gold)), place] = right - confidence
    columns[:, -1] = ((chances - np.eye(chances.shape[1])[gold]) ** 2).sum(axis=1)

    def of(counts, cells):
        sums = weighted_sums(counts, cells) / len(gold)
        return {"ece": np.abs(sums[:, :-1]).sum(axis=1), "brier": sums[:, -1]}

    return Measure(columns, of)
