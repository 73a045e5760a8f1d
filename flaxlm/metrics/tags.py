"""Scores of tags, one for each word of a sequence, that are not parts of entities."""

from collections.abc import Sequence

import numpy as np

from flaxlm.errors import DataError
from flaxlm.metrics.bootstrap import (
    CONFIDENCE,
    RESAMPLES,
    Interval,
    check_lengths,
    intervals_of,
    resampled_sums,
)
from flaxlm.metrics.counts import macro_and_micro, ratio

Tags = Sequence[Sequence[str]]


def _check(predictions: Tags, golds: Tags) -> None:
    """Raise DataError unless both have as many sequences of as many tags."""
    check_lengths(predictions, golds)
    for number, (predicted, gold) in enumerate(zip(predictions, golds, strict=True), 1):
        if len(predicted) != len(gold):
            raise DataError(
                f"sequence {number}: {len(predicted)} tags predicted for {len(gold)} words"
            )


def tag_scores(predictions: Tags, golds: Tags) -> dict[str, float]:
    """Return the scores of S sequences of tags, by scikit-learn.

    Returns:
      `accuracy` over all words; `precision_macro`, `recall_macro`, `f1_macro` over the tags that
      occur on either side. What has no denominator counts as 0.

    Raises:
      DataError: as many sequences or tags are not on both sides.
    """
    from sklearn.metrics import accuracy_score, precision_recall_fscore_support

    _check(predictions, golds)
    predicted, gold = ([str(tag) for tags in side for tag in tags] for side in (predictions, golds))
    macro = precision_recall_fscore_support(gold, predicted, average="macro", zero_division=0.0)
    named = zip(("precision_macro", "recall_macro", "f1_macro"), macro[:3], strict=True)
    accuracy = float(accuracy_score(gold, predicted))
    return {"accuracy": accuracy} | {name: float(value) for name, value in named}


def tag_intervals(
    predictions: Tags,
    golds: Tags,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
) -> dict[str, Interval]:
    """Return {name: (low, high)} for every name of `tag_scores`; whole sequences are drawn."""
    _check(predictions, golds)
    sides = [[[str(tag) for tag in tags] for tags in side] for side in (predictions, golds)]
    place = {tag: i for i, tag in enumerate(sorted({t for s in sides for tags in s for t in tags}))}
    counts = np.zeros((len(golds), 3, len(place)), np.int64)
    for s, (predicted, gold) in enumerate(zip(*sides, strict=True)):
        said, real = (np.array([place[t] for t in tags], np.int64) for tags in (predicted, gold))
        for group, tags in enumerate((said[said == real], said, real)):
            counts[s, group] = np.bincount(tags, minlength=len(place))
    sums = resampled_sums(counts.reshape(len(golds), -1), seed=seed, resamples=resamples)
    hit, said, real = np.split(sums, 3, axis=1)
    scores = {"accuracy": ratio(hit.sum(axis=1), real.sum(axis=1))}
    scores |= {k: v for k, v in macro_and_micro(hit, said, real).items() if k.endswith("_macro")}
    return intervals_of(scores, confidence)
