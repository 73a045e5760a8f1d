"""Perplexity and bits per byte, from the nats that a model spends on each example."""

import math
from collections.abc import Sequence

import numpy as np

from flaxlm.errors import DataError
from flaxlm.metrics.bootstrap import CONFIDENCE, RESAMPLES, Interval, check_lengths, ratio_interval


def perplexity(nats: float, tokens: float) -> float:
    """Return exp(nats / tokens), at most exp(700), which is still a number in JSON."""
    return math.exp(min(nats / tokens, 700.0))


def bits_per_byte(nats: float, byte_count: float) -> float:
    """Return nats / byte_count in bits: comparable between vocabularies, as perplexity is not."""
    return nats / math.log(2) / byte_count


_FUNCTIONS = {"perplexity": perplexity, "bits_per_byte": bits_per_byte}


def _weights(
    nats: Sequence[float], tokens: Sequence[float], byte_counts: Sequence[float] | None
) -> dict[str, np.ndarray]:
    weights = {"perplexity": tokens} | (
        {} if byte_counts is None else {"bits_per_byte": byte_counts}
    )
    for name, counts in weights.items():
        check_lengths(nats, counts)
        if not np.sum(counts) > 0:
            raise DataError(f"{name}: the examples have nothing to take the mean over")
    return {name: np.asarray(counts, np.float64) for name, counts in weights.items()}


def likelihood_scores(
    nats: Sequence[float],
    tokens: Sequence[float],
    byte_counts: Sequence[float] | None = None,
) -> dict[str, float]:
    """Return `perplexity`, and `bits_per_byte` where the bytes are given, over all examples.

    Args:
      nats: −log likelihood of each example [N].
      tokens: predicted tokens of each example [N].
      byte_counts: bytes of each example's text [N].
    """
    weights, total = _weights(nats, tokens, byte_counts), float(np.sum(nats, dtype=np.float64))
    return {name: _FUNCTIONS[name](total, float(w.sum())) for name, w in weights.items()}


def likelihood_intervals(
    nats: Sequence[float],
    tokens: Sequence[float],
    byte_counts: Sequence[float] | None = None,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
) -> dict[str, Interval]:
    """Return {name: (low, high)} for every name of `likelihood_scores`; examples are drawn."""
    options = {"seed": seed, "resamples": resamples, "confidence": confidence}
    intervals = {}
    for name, weights in _weights(nats, tokens, byte_counts).items():
        low, high = ratio_interval(nats, weights, **options)
        # Both are monotonous in the ratio, so percentiles of the ratio are theirs.
        intervals[name] = (_FUNCTIONS[name](low, 1.0), _FUNCTIONS[name](high, 1.0))
    return intervals
