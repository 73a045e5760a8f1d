"""Answers as spans of a text: where a given one stands, and the best that a model points at.

Dimension key: N windows, L length, S beginnings, K tokens of the longest answer.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

CHUNK = 64  # windows whose spans are scored at a time


class Place(NamedTuple):
    """Characters `begin` up to, not including, `end`; `moved`: it was said to be elsewhere."""

    begin: int
    end: int
    moved: bool


class Span(NamedTuple):
    """Characters `begin` up to, not including, `end`, and what a model's logits sum to there."""

    score: float
    begin: int
    end: int


def locate(context: str, text: str, start: int) -> Place | None:
    """Return where a text stands in a context, nearest to `start`; None: nowhere.

    White space around the text is not looked for.
    """
    start += len(text) - len(text.lstrip())
    text = text.strip()
    # The nearest at or before it, and the nearest behind it; of two as near the first.
    places = context.rfind(text, 0, max(start, 0) + len(text)), context.find(text, max(start, 0))
    begin = min((p for p in places if p >= 0), key=lambda place: abs(place - start), default=-1)
    return Place(begin, begin + len(text), begin != start) if begin >= 0 else None


def best_spans(outputs: Mapping[str, np.ndarray], longest: int, most: int) -> Iterator[list[Span]]:
    """Yield the `most` best spans of each window, of at most `longest` tokens, the best first.

    Of equal ones that which begins, then that which ends first comes first. `outputs` are
    `begin_scores`, `end_scores`, `begins` and `ends` [N, L], as `question_answering` predicts them.
    """
    for first in range(0, len(outputs["begins"]), CHUNK):
        rows = {name: array[first : first + CHUNK] for name, array in outputs.items()}
        begin_NL = np.where(rows["begins"] > 0, rows["begin_scores"].astype(np.float64), -np.inf)
        end_NL = np.where(rows["ends"] > 0, rows["end_scores"].astype(np.float64), -np.inf)
        # A beginning that is not among the `most` by the best of its spans has none of the best.
        padded = np.pad(end_NL, ((0, 0), (0, longest - 1)), constant_values=-np.inf)
        best_NL = begin_NL + sliding_window_view(padded, longest, axis=1).max(axis=-1)
        starts = np.sort(np.argsort(-best_NL, axis=1, kind="stable")[:, :most], axis=1)
        number = np.arange(len(starts))[:, None]
        end_NSK = padded[number[..., None], starts[..., None] + np.arange(longest)]
        scores = (begin_NL[number, starts][..., None] + end_NSK).reshape(len(starts), -1)
        chosen = np.argsort(-scores, axis=1, kind="stable")[:, :most]
        place, over = np.divmod(chosen, longest)
        start = starts[number, place]
        stop = np.minimum(start + over, end_NL.shape[1] - 1)
        best = scores[number, chosen], rows["begins"][number, start], rows["ends"][number, stop]
        for row in zip(*(array.tolist() for array in best), strict=True):
            spans = zip(*row, strict=True)
            yield [Span(score, begin - 1, end) for score, begin, end in spans if score > -np.inf]


def distinct(spans: Sequence[Span], context: str, most: int) -> list[tuple[str, float]]:
    """Return the `most` best texts of spans with the score of each one's best, the best first."""
    texts: dict[str, float] = {}
    for span in sorted(spans, key=lambda span: -span.score):
        texts.setdefault(context[span.begin : span.end], span.score)
    return list(texts.items())[:most]
