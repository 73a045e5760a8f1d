"""Entities and their scores against seqeval's strict mode; schemes against each other."""

import itertools

import numpy as np
import pytest
from measures import intervals_by, scores_by
from seqeval.metrics import accuracy_score
from seqeval.metrics.v1 import precision_recall_fscore_support
from seqeval.scheme import IOB1, IOB2, IOBES, Tokens

from flaxlm.errors import ConfigError, DataError
from flaxlm.metrics.entities import (
    SCHEMES,
    Entity,
    check_labels,
    entities,
    entity_measure,
    sequence_counts,
)

ORACLES = {"BIO": IOB2, "BIOES": IOBES, "BMES": IOBES, "IOB1": IOB1}
TYPES = ("PER", "GPE-LOC", "地名", "")
FUZZED = 10_000 // len(SCHEMES)  # of each scheme


def vocabulary(scheme: str, types=TYPES) -> list[str]:
    letters = SCHEMES[scheme]
    return ["O"] + [letter + (f"-{kind}" if kind else "") for letter in letters for kind in types]


def to_seqeval(tags: list[str], scheme: str) -> list[str]:
    return ["I" + tag[1:] if scheme == "BMES" and tag[0] == "M" else tag for tag in tags]


def tags_of(found, length: int, scheme: str) -> list[str]:
    """Return the tags of words in which `entities` finds these, which must not overlap."""
    tags, before = ["O"] * length, Entity("", -1, -1)
    for entity in sorted(found, key=lambda e: e.start):
        size = entity.end - entity.start
        if scheme in ("BIOES", "BMES"):
            inner = "M" if scheme == "BMES" else "I"
            letters = "S" if size == 1 else "B" + inner * (size - 2) + "E"
        elif scheme == "BIO" or (before.end, before.type) == (entity.start, entity.type):
            letters = "B" + "I" * (size - 1)
        else:
            letters = "I" * size
        kind = f"-{entity.type}" * bool(entity.type)
        tags[entity.start : entity.end] = [letter + kind for letter in letters]
        before = entity
    return tags


def seqeval_entities(tags: list[str], scheme: str) -> list[tuple]:
    found = Tokens(to_seqeval(tags, scheme), ORACLES[scheme]).entities
    return [("" if e.tag == "_" else e.tag, e.start, e.end) for e in found]


def fuzzed(scheme: str, seed: int, n: int = FUZZED) -> list[tuple[list[str], list[str]]]:
    """Return (predicted, gold): gold half valid and half noise, predicted a damaged copy."""
    rng = np.random.default_rng(seed)
    tags, pairs = vocabulary(scheme), []
    for valid in rng.random(n) < 0.5:
        length = int(rng.integers(0, 13))
        if valid:
            gold = tags_of(random_entities(rng, length), length, scheme)
        else:
            # Few tags a sequence, or a type would hardly ever go on for two words.
            some = rng.choice(tags, 4)
            gold = rng.choice(some, length).tolist()
        damage = rng.random(length) < rng.choice([0.0, 0.15, 0.6])
        new = rng.choice(tags, length)
        predicted = [str(n) if d else g for g, d, n in zip(gold, damage, new, strict=True)]
        pairs.append((predicted, gold))
    return pairs


def random_entities(rng, length: int) -> list[Entity]:
    found, at = [], 0
    while at < length:
        end = min(length, at + int(rng.integers(1, 5)))
        if rng.random() < 0.6:
            found.append(Entity(str(rng.choice(TYPES)), at, end))
        at = end
    return found


@pytest.mark.parametrize("scheme", SCHEMES)
def test_entities_and_scores_equal_seqeval_on_fuzzed_sequences(scheme):
    pairs = fuzzed(scheme, seed=len(scheme))
    read = [tags for pair in pairs for tags in pair]
    mismatches = [t for t in read if entities(t, scheme) != seqeval_entities(t, scheme)]
    assert mismatches == []
    # The sequences are a test: entities of every type, and sequences that break the rules.
    broken = sum(tags_of(entities(t, scheme), len(t), scheme) != t for t in read)
    assert len(pairs) == FUZZED and broken > FUZZED / 2
    for start in range(0, FUZZED, 25):
        predicted, gold = map(list, zip(*pairs[start : start + 25], strict=True))
        ours = scores_by(entity_measure, predicted, gold, scheme)
        said, real = ([to_seqeval(t, scheme) for t in side] for side in (predicted, gold))
        for average in ("macro", "micro"):
            theirs = precision_recall_fscore_support(
                real, said, average=average, scheme=ORACLES[scheme], zero_division=0
            )
            for name, value in zip(("precision", "recall", "f1"), theirs[:3], strict=True):
                assert ours[f"{name}_{average}"] == pytest.approx(value, abs=1e-12)
        assert ours["tag_accuracy"] == pytest.approx(accuracy_score(real, said), abs=1e-12)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_entities_equal_seqeval_on_every_short_sequence(scheme):
    tags = vocabulary(scheme, types=("A", "B"))
    longest = 5 if len(tags) == 5 else 4
    for length in range(longest + 1):
        for sequence in map(list, itertools.product(tags, repeat=length)):
            assert entities(sequence, scheme) == seqeval_entities(sequence, scheme)


def test_entities_of_broken_sequences_by_hand():
    def found(tags, scheme):
        return [tuple(e) for e in entities(tags.split(), scheme)]

    assert found("I-A I-A O B-A I-B", "BIO") == [("A", 3, 4)]
    assert found("B-A I-A I-A B-A", "BIO") == [("A", 0, 3), ("A", 3, 4)]
    assert found("B-A I-A O S-A E-A B-A E-A", "BIOES") == [("A", 3, 4), ("A", 5, 7)]
    assert found("B M E S", "BMES") == [("", 0, 3), ("", 3, 4)]
    assert found("I-A I-A B-A I-B O B-B", "IOB1") == [("A", 0, 2), ("A", 2, 3), ("B", 3, 4)]
    assert found("", "BIO") == []


@pytest.mark.parametrize("tag", ["X-A", "B_A", "BA", "b-A", "O-A", "", "B-", "B--A", "A-B", "B-A-"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_tag_of_no_known_shape_is_named_with_its_scheme_and_sequence(tag, scheme):
    with pytest.raises(DataError) as caught:
        scores_by(entity_measure, [["O"], ["O", tag]], [["O"], ["O", "O"]], scheme)
    assert f"tag {tag!r} is none of scheme {scheme}" in str(caught.value)
    assert "sequence 2" in str(caught.value)


def test_tags_of_one_scheme_are_refused_in_another():
    with pytest.raises(DataError, match=r"'M-A' is none of scheme BIOES: .* B-TYPE, I-TYPE"):
        entities(["M-A"], "BIOES")
    with pytest.raises(ConfigError, match="BIO, BIOES, BMES, IOB1"):
        entities(["O"], "IOE2")


def test_sequences_of_other_lengths_are_refused_by_number():
    with pytest.raises(DataError, match="sequence 2: 1 tags predicted for 2 words"):
        scores_by(entity_measure, [["O"], ["O"]], [["O"], ["O", "O"]], "BIO")


def test_without_any_entity_the_scores_are_0_and_tags_still_count():
    scores = scores_by(entity_measure, [["O", "O"], []], [["O", "I-A"], []], "BIO")
    assert scores.pop("tag_accuracy") == 0.5
    assert set(scores.values()) == {0.0}
    low, high = intervals_by(entity_measure, [["O", "O"]], [["O", "I-A"]], "BIO")["f1_macro"]
    assert (low, high) == (0.0, 0.0)


def test_entity_intervals_draw_whole_sequences():
    predicted, gold = map(list, zip(*fuzzed("BIO", seed=6, n=150), strict=True))
    ours = intervals_by(entity_measure, predicted, gold, "BIO")
    point = scores_by(entity_measure, predicted, gold, "BIO")
    assert ours.keys() == point.keys()
    rng = np.random.default_rng(3)
    plain = {name: [] for name in point}
    for _ in range(100):
        rows = rng.integers(0, 150, 150)
        drawn = scores_by(
            entity_measure, [predicted[r] for r in rows], [gold[r] for r in rows], "BIO"
        )
        for name, value in drawn.items():
            plain[name].append(value)
    for name, values in plain.items():
        assert ours[name] == pytest.approx(np.quantile(values, [0.025, 0.975]), abs=0.04), name
    # Two copies of every sequence are no more evidence by themselves, and draws see them as such.
    twice = intervals_by(entity_measure, predicted * 2, gold * 2, "BIO")["f1_micro"]
    assert twice[1] - twice[0] == pytest.approx(
        (ours["f1_micro"][1] - ours["f1_micro"][0]) / np.sqrt(2), rel=0.25
    )


def test_check_labels_takes_what_a_scheme_can_tag_with():
    for scheme in SCHEMES:
        check_labels(vocabulary(scheme), scheme)
    check_labels(["O", "B-A"], "BIO")  # entities of one word
    check_labels(["O", "S-A"], "BIOES")
    check_labels(["O", "I-A"], "IOB1")
    check_labels(["B", "M", "E", "S"], "BMES")  # word segmentation has no O


@pytest.mark.parametrize(
    ("labels", "scheme", "message"),
    [
        (["O", "I-A"], "BIO", "has 'I-A' and not 'B-A'"),
        (["O", "B-A", "I-A", "I-B"], "BIO", "has 'I-B' and not 'B-B'"),
        (["O", "B-A", "I-A"], "BIOES", "has 'B-A' and not 'E-A'"),
        (["O", "B-A"], "IOB1", "has 'B-A' and not 'I-A'"),
        (["B", "M", "S"], "BMES", "has 'B' and not 'E'"),
        (["O", "B-A", "B-A"], "BIO", "names 'B-A' 2 times"),
        (["O", "M-A"], "BIO", "'M-A' is none of scheme BIO"),
        (["O"], "BIO", "no tag of an entity"),
    ],
)
def test_check_labels_names_what_a_scheme_cannot_use(labels, scheme, message):
    with pytest.raises(ConfigError, match=r"objective\.labels") as caught:
        check_labels(labels, scheme)
    assert message in str(caught.value)


def test_counts_of_each_type_are_those_of_each_sequence_alone():
    predicted, gold = zip(*fuzzed("BIOES", seed=9, n=60), strict=True)
    types, counts, tags = sequence_counts(predicted, gold, "BIOES")
    assert counts.shape == (60, 3, len(types)) and types == sorted(types)
    for s in range(60):
        said, real = (set(seqeval_entities(t[s], "BIOES")) for t in (predicted, gold))
        for t, kind in enumerate(types):
            sizes = [sum(e[0] == kind for e in group) for group in (said & real, said, real)]
            assert counts[s, :, t].tolist() == sizes
        assert tags[s, 1] == len(gold[s])
