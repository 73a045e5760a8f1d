"""Scores of tags, one for each word of a sequence, that are not parts of entities."""

from collections.abc import Sequence

import numpy as np

from flaxlm.errors import DataError
from flaxlm.metrics.counts import macro_and_micro, ratio
from flaxlm.metrics.measure import Measure, check_lengths, weighted_sums

Tags = Sequence[Sequence[str]]


def _check(predictions: Tags, golds: Tags) -> None:
    """Raise DataError unless both have as many sequences of as many tags."""
    check_lengths(predictions, golds)
    for number, (predicted, gold) in enumerate(zip(predictions, golds, strict=True), 1):
        if len(predicted) != len(gold):
            raise DataError(
                f"sequence {number}: {len(predicted)} tags predicted for {len(gold)} words"
            )


def tag_measure(predictions: Tags, golds: Tags) -> Measure:
    """Return the measure of S sequences of tags; whole sequences are drawn.

    Its scores are `accuracy` over all words, and `precision_macro`, `recall_macro`, `f1_macro` over
    the tags that occur on either side. What has no denominator counts as 0.

    Raises:
      DataError: as many sequences or tags are not on both sides.
    """
    _check(predictions, golds)
    sides = [[[str(tag) for tag in tags] for tags in side] for side in (predictions, golds)]
    place = {tag: i for i, tag in enumerate(sorted({t for s in sides for tags in s for t in tags}))}
    counts = np.zeros((len(golds), 3, len(place)), np.int64)
    for s, (predicted, gold) in enumerate(zip(*sides, strict=True)):
        said, real = (np.array([place[t] for t in tags], np.int64) for tags in (predicted, gold))
        for group, tags in enumerate((said[said == real], said, real)):
            counts[s, group] = np.bincount(tags, minlength=len(place))

    def of(drawn, cells):
        hit, said, real = np.split(weighted_sums(drawn, cells), 3, axis=1)
        scores = {"accuracy": ratio(hit.sum(axis=1), real.sum(axis=1))}
        averages = macro_and_micro(hit, said, real)
        return scores | {name: v for name, v in averages.items() if name.endswith("_macro")}

    return Measure(counts.reshape(len(golds), -1).astype(np.float64), of)
