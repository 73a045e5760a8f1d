"""Scores of tag sequences: of strict entities, by the scheme of the tags, and of single tags.

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
from flaxlm.metrics.measure import Measure, check_lengths, macro_and_micro, ratio, weighted_sums

# The letters of each scheme beside O.
SCHEMES = {"BIO": "BI", "BIOES": "BIES", "BMES": "BMES", "IOB1": "BI"}
OUTSIDE = "O"
Tags = Sequence[Sequence[str]]

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


def _read_begun(parsed: list[tuple[str, str]], closed: bool) -> list[Entity]:
    """Return the entities that B begins; `closed`: only those that E ends, and those of S."""
    read, start, kind = [], -1, ""
    for i, (letter, here) in enumerate([*parsed, (OUTSIDE, "")]):
        if letter in "IME" and start >= 0 and here == kind:
            if letter == "E":
                read.append(Entity(kind, start, i + 1))
                start = -1
            continue
        if start >= 0 and not closed:
            read.append(Entity(kind, start, i))
        if letter == "S":
            read.append(Entity(here, i, i + 1))
        start, kind = (i if letter == "B" else -1), here
    return read


def _read_iob1(parsed: list[tuple[str, str]]) -> list[Entity]:
    read, start, before = [], -1, (OUTSIDE, "")
    for i, (letter, here) in enumerate([*parsed, (OUTSIDE, "")]):
        kind = before[1]
        if letter == "I" and start >= 0 and here == kind:
            before = letter, here
            continue
        # Of a B right before a B of another type, itself out of place, seqeval makes nothing.
        lost = before[0] == letter == "B" and here != kind
        if start >= 0 and not lost:
            read.append(Entity(kind, start, i))
        begins = letter == "I" or (letter == "B" and before[0] != OUTSIDE and here == kind)
        start, before = (i if begins else -1), (letter, here)
    return read


def entities(tags: Sequence[str], scheme: str) -> list[Entity]:
    """Return the entities of one sequence of tags, in order; DataError where one is no such tag."""
    parsed = _parse(tags, scheme)
    return _read_iob1(parsed) if scheme == "IOB1" else _read_begun(parsed, scheme != "BIO")


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


def _check_words(predictions: Tags, golds: Tags) -> None:
    """Raise DataError unless both have as many sequences of as many tags."""
    check_lengths(predictions, golds)
    for number, (predicted, gold) in enumerate(zip(predictions, golds, strict=True), 1):
        if len(predicted) != len(gold):
            raise DataError(
                f"sequence {number}: {len(predicted)} tags predicted for {len(gold)} words"
            )


def sequence_counts(
    predictions: Tags, golds: Tags, scheme: str
) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Return what the scores of S sequences of tags are functions of, sequence by sequence.

    That is the types that occur, sorted; int64 [S, 3, types], how many entities of each sequence
    are right, predicted, and in the gold tags; int64 [S, 2], its right tags and all its tags.
    """
    _check_words(predictions, golds)
    counted, tags = [], np.zeros((len(golds), 2), np.int64)
    for s, (predicted, gold) in enumerate(zip(predictions, golds, strict=True)):
        try:
            said, real = set(entities(predicted, scheme)), set(entities(gold, scheme))
        except DataError as error:
            raise DataError(f"sequence {s + 1}: {error}") from error
        counted.append([Counter(e.type for e in group) for group in (said & real, said, real)])
        same = sum(str(a) == str(b) for a, b in zip(predicted, gold, strict=True))
        tags[s] = same, len(gold)
    types = sorted(set().union(*(group for groups in counted for group in groups)))
    counts = [[[group[kind] for kind in types] for group in groups] for groups in counted]
    return types, np.array(counts, np.int64).reshape(len(golds), 3, len(types)), tags


def entity_measure(predictions: Tags, golds: Tags, scheme: str) -> Measure:
    """Return the measure of the entities of S sequences of tags; whole sequences are drawn.

    Its scores are `precision`, `recall`, `f1` of entities, each `_macro` (over the types that occur
    on either side) and `_micro`, and `tag_accuracy`. What has no denominator counts as 0.
    """
    types, counts, tags = sequence_counts(predictions, golds, scheme)
    columns = np.concatenate([counts.reshape(len(golds), -1), tags], axis=1)

    def of(drawn, cells):
        sums = weighted_sums(drawn, cells)
        hit, predicted, gold = sums[:, :-2].reshape(len(sums), 3, len(types)).swapaxes(0, 1)
        accuracy = ratio(sums[:, -2], sums[:, -1])
        return {**macro_and_micro(hit, predicted, gold), "tag_accuracy": accuracy}

    return Measure(columns.astype(np.float64), of)


def tag_measure(predictions: Tags, golds: Tags) -> Measure:
    """Return the measure of S sequences of tags that stand by themselves; sequences are drawn.

    Its scores are `accuracy` over all words, and `precision_macro`, `recall_macro`, `f1_macro` over
    the tags that occur on either side. What has no denominator counts as 0.
    """
    _check_words(predictions, golds)
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
