"""Scores that are functions of counts, for one list of examples or for R resamples at once."""

import numpy as np


def ratio(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    """Return top / bottom in float64, 0 where the bottom is 0."""
    top, bottom = np.asarray(top, np.float64), np.asarray(bottom, np.float64)
    return np.divide(top, bottom, out=np.zeros(np.broadcast(top, bottom).shape), where=bottom != 0)


def macro_and_micro(
    hit_RC: np.ndarray, predicted_RC: np.ndarray, gold_RC: np.ndarray
) -> dict[str, np.ndarray]:
    """Return precision, recall and F1 [R], each macro and micro, of counts by class.

    The macro average runs over the classes that occur (predicted + gold > 0), and is 0 where none
    does. What has no denominator counts as 0.
    """

    def scores(hit: np.ndarray, predicted: np.ndarray, gold: np.ndarray) -> dict[str, np.ndarray]:
        return {
            "precision": ratio(hit, predicted),
            "recall": ratio(hit, gold),
            "f1": ratio(2.0 * hit, predicted + gold),
        }

    occurring = ((predicted_RC + gold_RC) > 0).sum(axis=1)
    macro = scores(hit_RC, predicted_RC, gold_RC)
    micro = scores(*(counts.sum(axis=1) for counts in (hit_RC, predicted_RC, gold_RC)))
    return {
        **{f"{name}_macro": ratio(v.sum(axis=1), occurring) for name, v in macro.items()},
        **{f"{name}_micro": v for name, v in micro.items()},
    }
