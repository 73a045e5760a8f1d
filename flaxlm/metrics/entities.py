"""Strict entity scores of tag sequences, and the schemes that the tags are written in.

A tag is `O`, or a letter and a type (`B-PER`); a letter alone is an entity without a type, as in
word segmentation. The schemes, and what strict means in each:

- `BIO` (IOB2): B begins an entity, I of the same type goes on. An I elsewhere is nothing.
- `BIOES` (IOBES): B I … E of one type, or S alone. What is not closed by E is nothing.
- `BMES`: the same with M for I, as Chinese corpora write it.
- `IOB1` (CoNLL-2003): I begins an entity and goes on; B begins only where the word before belongs
  to an entity of the same type, and elsewhere is nothing.

Entities count as right when type, begin and end are (Tjong Kim Sang & De Meulder, 2003), and what
they are in broken sequences agrees with seqeval's strict mode.
"""

import functools
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from flaxlm.errors import ConfigError, DataError, choose
from flaxlm.metrics.counts import macro_and_micro, ratio
from flaxlm.metrics.measure import Measure, check_lengths, weighted_sums

# The letters of each scheme beside O.
SCHEMES = {"BIO": "BI", "BIOES": "BIES", "BMES": "BMES", "IOB1": "BI"}
OUTSIDE = "O"

# What else a type needs where it has the letter: without, no entity could be closed, or begun.
_NEEDS = {
    "BIO": {"I": "B"},
    "BIOES": {"B": "E", "I": "BE", "E": "B"},
    "BMES": {"B": "E", "M": "BE", "E": "B"},
    "IOB1": {"B": "I"},
}


class Entity(NamedTuple):
    """Words `start` up to, not including, `end`, of one type ('' where tags have none)."""

    type: str
    start: int
    end: int


@functools.lru_cache(maxsize=4096)
def _split(tag: str, scheme: str) -> tuple[str, str]:
    """Return letter and type; DataError when it is no tag of the scheme."""
    if tag == OUTSIDE:
        return OUTSIDE, ""
    letters = SCHEMES[scheme]
    letter, dash, kind = tag[:1], tag[1:2], tag[2:]
    # A type keeps its hyphens ('GPE-LOC'), but `B--LOC` is a slip of the pen.
    shaped = not dash or (dash == "-" and kind and kind == kind.strip("-"))
    if letter and letter in letters and shaped:
        return letter, kind
    shapes = ", ".join(f"{letter}-TYPE" for letter in letters)
    raise DataError(
        f"tag {tag!r} is none of scheme {scheme}: a tag is {OUTSIDE} or one of {shapes}"
    )


def _parse(tags: Iterable[str], scheme: str) -> list[tuple[str, str]]:
    choose("scheme", scheme, SCHEMES)
    return [_split(str(tag), scheme) for tag in tags]


def _read_bio(parsed: list[tuple[str, str]]) -> list[Entity]:
    found, start, kind = [], -1, ""
    for i, (letter, here) in enumerate([*parsed, (OUTSIDE, "")]):
        if letter == "I" and start >= 0 and here == kind:
            continue
        if start >= 0:
            found.append(Entity(kind, start, i))
        start, kind = (i if letter == "B" else -1), here
    return found


def _read_closed(parsed: list[tuple[str, str]]) -> list[Entity]:
    found, start, kind = [], -1, ""
    for i, (letter, here) in enumerate(parsed):
        if letter in "IME" and start >= 0 and here == kind:
            if letter == "E":
                found.append(Entity(kind, start, i + 1))
                start = -1
            continue
        if letter == "S":
            found.append(Entity(here, i, i + 1))
        start, kind = (i if letter == "B" else -1), here
    return found


def _read_iob1(parsed: list[tuple[str, str]]) -> list[Entity]:
    found, start, before = [], -1, (OUTSIDE, "")
    for i, (letter, here) in enumerate([*parsed, (OUTSIDE, "")]):
        kind = before[1]
        if letter == "I" and start >= 0 and here == kind:
            before = letter, here
            continue
        # Of a B right before a B of another type, itself out of place, seqeval makes nothing.
        lost = before[0] == letter == "B" and here != kind
        if start >= 0 and not lost:
            found.append(Entity(kind, start, i))
        begins = letter == "I" or (letter == "B" and before[0] != OUTSIDE and here == kind)
        start, before = (i if begins else -1), (letter, here)
    return found


_READ = {"BIO": _read_bio, "BIOES": _read_closed, "BMES": _read_closed, "IOB1": _read_iob1}


def entities(tags: Sequence[str], scheme: str) -> list[Entity]:
    """Return the entities of one sequence of tags, in order.

    Raises:
      ConfigError: `scheme` is none of `SCHEMES`.
      DataError: a tag is none of the scheme.
    """
    parsed = _parse(tags, scheme)
    return _READ[scheme](parsed)


def check_labels(labels: Sequence[str], scheme: str) -> None:
    """Raise ConfigError unless the labels are tags of a scheme with which entities can be tagged.

    Each stands there once, and a type has the letters that its others need: of BIO, no I without B.
    """
    try:
        parsed = _parse(labels, scheme)
    except DataError as error:
        raise ConfigError(f"objective.labels: {error}") from error
    seen = Counter(parsed)
    for (letter, kind), times in seen.items():
        tag = letter + (f"-{kind}" if kind else "")
        if times > 1:
            raise ConfigError(f"objective.labels names {tag!r} {times} times")
        for needed in _NEEDS[scheme].get(letter, ""):
            if (needed, kind) not in seen:
                partner = needed + tag[1:]
                raise ConfigError(
                    f"objective.labels has {tag!r} and not {partner!r}, without which scheme "
                    f"{scheme} has no such entity; are the tags written in another of "
                    f"{', '.join(SCHEMES)}?"
                )
    if all(letter == OUTSIDE for letter, _ in seen):
        raise ConfigError(f"objective.labels={tuple(labels)!r} has no tag of an entity")


def sequence_counts(
    predictions: Sequence[Sequence[str]], golds: Sequence[Sequence[str]], scheme: str
) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Return what the scores are functions of, sequence by sequence.

    Args:
      predictions, golds: S sequences of tags, as long as each other.
      scheme: of both.

    Returns:
      the types that occur, sorted; int64 [S, 3, types], how many entities of each
      sequence are right, predicted, and in the gold tags; int64 [S, 2], its right tags and all
      its tags.

    Raises:
      DataError: as many sequences or tags are not on both sides, or a tag is none of the scheme;
        the sequence is named.
    """
    check_lengths(predictions, golds)
    counted, tags = [], np.zeros((len(golds), 2), np.int64)
    for s, (predicted, gold) in enumerate(zip(predictions, golds, strict=True)):
        if len(predicted) != len(gold):
            raise DataError(
                f"sequence {s + 1}: {len(predicted)} tags predicted for {len(gold)} words"
            )
        try:
            said, real = set(entities(predicted, scheme)), set(entities(gold, scheme))
        except DataError as error:
            raise DataError(f"sequence {s + 1}: {error}") from error
        counted.append([Counter(e.type for e in group) for group in (said & real, said, real)])
        same = sum(str(a) == str(b) for a, b in zip(predicted, gold, strict=True))
        tags[s] = same, len(gold)
    types = sorted(set().union(*(group for groups in counted for group in groups)))
    place = {kind: t for t, kind in enumerate(types)}
    counts = np.zeros((len(golds), 3, len(types)), np.int64)
    for s, groups in enumerate(counted):
        for g, group in enumerate(groups):
            for kind, number in group.items():
                counts[s, g, place[kind]] = number
    return types, counts, tags


def entity_measure(
    predictions: Sequence[Sequence[str]], golds: Sequence[Sequence[str]], scheme: str
) -> Measure:
    """Return the measure of the entities of S sequences of tags; whole sequences are drawn.

    Its scores are `precision`, `recall`, `f1` of entities, each `_macro` and `_micro`, and
    `tag_accuracy`. Macro averages run over the types that occur among the entities of either side;
    what has no denominator counts as 0. Arguments and errors are those of `sequence_counts`.
    """
    types, counts, tags = sequence_counts(predictions, golds, scheme)
    columns = np.concatenate([counts.reshape(len(golds), -1), tags], axis=1)

    def of(drawn, cells):
        sums = weighted_sums(drawn, cells)
        hit, predicted, gold = sums[:, :-2].reshape(len(sums), 3, len(types)).swapaxes(0, 1)
        accuracy = ratio(sums[:, -2], sums[:, -1])
        return {**macro_and_micro(hit, predicted, gold), "tag_accuracy": accuracy}

    return Measure(columns.astype(np.float64), of)
