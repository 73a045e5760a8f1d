"""Measures, with their scores and intervals as functions of what they are made of."""

from flaxlm.metrics.measure import Measure, intervals_of, scores_of

DRAWS = ("seed", "resamples", "confidence")


def measures(kind, *args, **options) -> list[Measure]:
    made = kind(*args, **options)
    return [made] if isinstance(made, Measure) else made


def scores_by(kind, *args, **options) -> dict[str, float]:
    return scores_of(measures(kind, *args, **options))


def intervals_by(kind, *args, **options) -> dict[str, tuple[float, float]]:
    draws = {name: options.pop(name) for name in DRAWS if name in options}
    return intervals_of(measures(kind, *args, **options), **draws)


def interval_by(kind, *args, **options) -> tuple[float, float]:
    """Return the interval of a measure of one score."""
    return intervals_by(kind, "score", *args, **options)["score"]
