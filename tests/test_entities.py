"""Entities and their scores against seqeval's strict mode; schemes against each other."""

import itertools

import numpy as np
import pytest
from seqeval.metrics import accuracy_score
from seqeval.metrics.v1 import precision_recall_fscore_support
from seqeval.scheme import IOB1, IOB2, IOBES, Tokens

from flaxlm import metrics
from flaxlm.errors import ConfigError, DataError
from flaxlm.metrics.entities import sequence_counts, tags_of

ORACLES = {"BIO": IOB2, "BIOES": IOBES, "BMES": IOBES, "IOB1": IOB1}
TYPES = ("PER", "GPE-LOC", "地名", "")
FUZZED = 10_000


def vocabulary(scheme: str, types=TYPES) -> list[str]:
    letters = metrics.SCHEMES[scheme]
    return ["O"] + [letter + (f"-{kind}" if kind else "") for letter in letters for kind in types]


def to_seqeval(tags: list[str], scheme: str) -> list[str]:
    return ["I" + tag[1:] if scheme == "BMES" and tag[0] == "M" else tag for tag in tags]


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


def random_entities(rng, length: int) -> list[metrics.Entity]:
    found, at = [], 0
    while at < length:
        end = min(length, at + int(rng.integers(1, 5)))
        if rng.random() < 0.6:
            found.append(metrics.Entity(str(rng.choice(TYPES)), at, end))
        at = end
    return found


@pytest.mark.parametrize("scheme", metrics.SCHEMES)
def test_entities_and_scores_equal_seqeval_on_fuzzed_sequences(scheme):
    pairs = fuzzed(scheme, seed=len(scheme))
    read = [tags for pair in pairs for tags in pair]
    mismatches = [t for t in read if metrics.entities(t, scheme) != seqeval_entities(t, scheme)]
    assert mismatches == []
    # The sequences are a test: entities of every type, and sequences that break the rules.
    broken = sum(tags_of(metrics.entities(t, scheme), len(t), scheme) != t for t in read)
    assert len(pairs) == FUZZED and broken > FUZZED / 2
    for start in range(0, FUZZED, 25):
        predicted, gold = map(list, zip(*pairs[start : start + 25], strict=True))
        ours = metrics.entity_scores(predicted, gold, scheme)
        said, real = ([to_seqeval(t, scheme) for t in side] for side in (predicted, gold))
        for average in ("macro", "micro"):
            theirs = precision_recall_fscore_support(
                real, said, average=average, scheme=ORACLES[scheme], zero_division=0
            )
            for name, value in zip(("precision", "recall", "f1"), theirs[:3], strict=True):
                assert ours[f"{name}_{average}"] == pytest.approx(value, abs=1e-12)
        assert ours["tag_accuracy"] == pytest.approx(accuracy_score(real, said), abs=1e-12)


@pytest.mark.parametrize("scheme", metrics.SCHEMES)
def test_entities_equal_seqeval_on_every_short_sequence(scheme):
    tags = vocabulary(scheme, types=("A", "B"))
    longest = 5 if len(tags) == 5 else 4
    for length in range(longest + 1):
        for sequence in map(list, itertools.product(tags, repeat=length)):
            assert metrics.entities(sequence, scheme) == seqeval_entities(sequence, scheme)


def test_entities_of_broken_sequences_by_hand():
    def found(tags, scheme):
        return [tuple(e) for e in metrics.entities(tags.split(), scheme)]

    assert found("I-A I-A O B-A I-B", "BIO") == [("A", 3, 4)]
    assert found("B-A I-A I-A B-A", "BIO") == [("A", 0, 3), ("A", 3, 4)]
    assert found("B-A I-A O S-A E-A B-A E-A", "BIOES") == [("A", 3, 4), ("A", 5, 7)]
    assert found("B M E S", "BMES") == [("", 0, 3), ("", 3, 4)]
    assert found("I-A I-A B-A I-B O B-B", "IOB1") == [("A", 0, 2), ("A", 2, 3), ("B", 3, 4)]
    assert found("", "BIO") == []


@pytest.mark.parametrize("tag", ["X-A", "B_A", "BA", "b-A", "O-A", "", "B-", "B--A", "A-B", "B-A-"])
@pytest.mark.parametrize("scheme", metrics.SCHEMES)
def test_a_tag_of_no_known_shape_is_named_with_its_scheme_and_sequence(tag, scheme):
    with pytest.raises(DataError) as caught:
        metrics.entity_scores([["O"], ["O", tag]], [["O"], ["O", "O"]], scheme)
    assert f"tag {tag!r} is none of scheme {scheme}" in str(caught.value)
    assert "sequence 2" in str(caught.value)
    with pytest.raises(DataError, match="is none of scheme"):
        metrics.convert([tag], scheme, "BIO")


def test_tags_of_one_scheme_are_refused_in_another():
    with pytest.raises(DataError, match=r"'M-A' is none of scheme BIOES: .* B-TYPE, I-TYPE"):
        metrics.entities(["M-A"], "BIOES")
    with pytest.raises(ConfigError, match="BIO, BIOES, BMES, IOB1"):
        metrics.entities(["O"], "IOE2")


def test_sequences_of_other_lengths_are_refused_by_number():
    with pytest.raises(DataError, match="sequence 2: 1 tags predicted for 2 words"):
        metrics.entity_scores([["O"], ["O"]], [["O"], ["O", "O"]], "BIO")


def test_without_any_entity_the_scores_are_0_and_tags_still_count():
    scores = metrics.entity_scores([["O", "O"], []], [["O", "I-A"], []], "BIO")
    assert scores.pop("tag_accuracy") == 0.5
    assert set(scores.values()) == {0.0}
    low, high = metrics.entity_intervals([["O", "O"]], [["O", "I-A"]], "BIO")["f1_macro"]
    assert (low, high) == (0.0, 0.0)


def test_type_counts_add_up_to_the_micro_scores():
    predicted, gold = zip(*fuzzed("BIO", seed=5, n=300), strict=True)
    counts = metrics.type_counts(predicted, gold, "BIO")
    for kind, count in counts.items():
        said = [[e for e in seqeval_entities(t, "BIO") if e[0] == kind] for t in predicted]
        real = [[e for e in seqeval_entities(t, "BIO") if e[0] == kind] for t in gold]
        hit = sum(len(set(s) & set(r)) for s, r in zip(said, real, strict=True))
        assert count == (hit, sum(map(len, said)), sum(map(len, real)))
    hit, said, real = np.sum(list(counts.values()), axis=0)
    scores = metrics.entity_scores(predicted, gold, "BIO")
    assert scores["precision_micro"] == pytest.approx(hit / said)
    assert scores["recall_micro"] == pytest.approx(hit / real)
    assert scores["f1_micro"] == pytest.approx(2 * hit / (said + real))


def test_entity_intervals_draw_whole_sequences():
    predicted, gold = map(list, zip(*fuzzed("BIO", seed=6, n=150), strict=True))
    ours = metrics.entity_intervals(predicted, gold, "BIO")
    point = metrics.entity_scores(predicted, gold, "BIO")
    assert ours.keys() == point.keys()
    rng = np.random.default_rng(3)
    plain = {name: [] for name in point}
    for _ in range(100):
        rows = rng.integers(0, 150, 150)
        drawn = metrics.entity_scores([predicted[r] for r in rows], [gold[r] for r in rows], "BIO")
        for name, value in drawn.items():
            plain[name].append(value)
    for name, values in plain.items():
        assert ours[name] == pytest.approx(np.quantile(values, [0.025, 0.975]), abs=0.04), name
    # Two copies of every sequence are no more evidence by themselves, and draws see them as such.
    twice = metrics.entity_intervals(predicted * 2, gold * 2, "BIO")["f1_micro"]
    assert twice[1] - twice[0] == pytest.approx(
        (ours["f1_micro"][1] - ours["f1_micro"][0]) / np.sqrt(2), rel=0.25
    )


@pytest.mark.parametrize("target", metrics.SCHEMES)
@pytest.mark.parametrize("source", metrics.SCHEMES)
def test_conversion_there_and_back_loses_nothing(source, target):
    rng = np.random.default_rng(4)
    for _ in range(300):
        length = int(rng.integers(0, 12))
        wanted = random_entities(rng, length)
        tags = tags_of(wanted, length, source)
        there = metrics.convert(tags, source, target)
        assert metrics.entities(tags, source) == metrics.entities(there, target) == wanted
        assert metrics.convert(there, target, source) == tags
        assert [t == "O" for t in tags] == [t == "O" for t in there]


def test_conversion_by_hand():
    bio = "B-A I-A I-A B-A O B-B B-C".split()
    assert metrics.convert(bio, "BIO", "BIOES") == "B-A I-A E-A S-A O S-B S-C".split()
    assert metrics.convert(bio, "BIO", "BMES") == "B-A M-A E-A S-A O S-B S-C".split()
    assert metrics.convert(bio, "BIO", "IOB1") == "I-A I-A I-A B-A O I-B I-C".split()
    assert metrics.convert("B E S".split(), "BMES", "BIO") == "B I B".split()


@pytest.mark.parametrize("scheme", metrics.SCHEMES)
def test_conversion_refuses_whatever_it_would_lose(scheme):
    other = "IOB1" if scheme != "IOB1" else "BIO"
    refused = 0
    for _, tags in fuzzed(scheme, seed=8, n=1000):
        words = {w for e in seqeval_entities(tags, scheme) for w in range(e[1], e[2])}
        lost = any(tag != "O" and w not in words for w, tag in enumerate(tags))
        try:
            metrics.convert(tags, scheme, other)
        except DataError:
            refused += 1
        else:
            assert not lost, tags
    assert refused > 100
    with pytest.raises(DataError, match="word 2 of 3 has the tag 'I-A', which scheme BIO"):
        metrics.convert(["O", "I-A", "O"], "BIO", "BIOES")


def test_check_labels_takes_what_a_scheme_can_tag_with():
    for scheme in metrics.SCHEMES:
        metrics.check_labels(vocabulary(scheme), scheme)
    metrics.check_labels(["O", "B-A"], "BIO")  # entities of one word
    metrics.check_labels(["O", "S-A"], "BIOES")
    metrics.check_labels(["O", "I-A"], "IOB1")
    metrics.check_labels(["B", "M", "E", "S"], "BMES")  # word segmentation has no O


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
        metrics.check_labels(labels, scheme)
    assert message in str(caught.value)


def test_sequence_counts_are_those_of_each_sequence_alone():
    predicted, gold = zip(*fuzzed("BIOES", seed=9, n=60), strict=True)
    types, counts, tags = sequence_counts(predicted, gold, "BIOES")
    assert counts.shape == (60, 3, len(types)) and types == sorted(types)
    for s in range(60):
        alone = metrics.type_counts(predicted[s : s + 1], gold[s : s + 1], "BIOES")
        for t, kind in enumerate(types):
            assert tuple(counts[s, :, t]) == alone.get(kind, (0, 0, 0))
        assert tags[s, 1] == len(gold[s])
