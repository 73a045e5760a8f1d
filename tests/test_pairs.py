"""Sentence pairs: whole sentences, all text, half of the pairs random and from another document."""

import numpy as np
import pytest
from fakes import BOS, EOS, FakeCache

from flaxlm.data.pairs import IS_NEXT, RANDOM, PairPlan
from flaxlm.errors import ConfigError, DataError

LENGTH = 20
# Documents as lists of sentence lengths: one sentence, one token, none, over-long, many short.
SENTENCES = [[4], [1], [], [60], [3] * 30, [17], [18], [5, 25, 2, 2], [8, 8, 8], [2, 1]]


@pytest.fixture(scope="module")
def cache():
    """Token 1000·document + place: a token says where it is from."""
    texts = [[1000 * (d + 1) + i for i in range(sum(s))] for d, s in enumerate(SENTENCES)]
    return FakeCache.of(texts, SENTENCES)


@pytest.fixture(scope="module")
def plan(cache):
    return PairPlan(cache, LENGTH, 0, True, bos_id=BOS, eos_id=EOS)


def pairs(plan, epochs):
    """Yield (A, B, label, row) of all rows, read from the layout `[CLS] A [SEP] B [SEP]`."""
    for epoch in range(epochs):
        raw = plan.fetch(epoch, np.arange(plan.num_rows))
        for row in range(plan.num_rows):
            tokens, types = raw["tokens"][row], raw["token_types"][row]
            used = int(raw["segment_ids"][row].sum())
            assert (raw["segment_ids"][row, :used] == 1).all() and (tokens[used:] == 0).all()
            first, second = np.flatnonzero(tokens == EOS)
            assert tokens[0] == BOS and second == used - 1
            assert types.tolist() == [0] * (first + 1) + [1] * (second - first) + [0] * (
                LENGTH - used
            )
            label = raw["labels"][row]
            yield tokens[1:first], tokens[first + 1 : second], label, raw["example_ids"][row]


def test_pairs_are_consecutive_or_from_another_document(plan):
    labels = []
    for a, b, label, _ in pairs(plan, 40):
        assert len(a) and len(b)
        assert (np.diff(a) == 1).all() and (np.diff(b) == 1).all()
        if label == IS_NEXT:
            assert b[0] == a[-1] + 1
        else:
            assert label == RANDOM and b[0] // 1000 != a[0] // 1000
        if len(a) + len(b) > 1 and a[0] != 2000:  # a document of one token has nothing that follows
            labels.append(label)
    n = len(labels)
    assert abs(np.mean(labels) - 0.5) < 4 * 0.5 / np.sqrt(n)


def test_a_document_of_one_sentence_makes_both_kinds_of_pair(plan):
    labels = [label for a, _, label, _ in pairs(plan, 40) if a[0] // 1000 == 1]
    assert 0.2 < np.mean(labels) < 0.8


def test_every_token_appears_and_every_chunk_in_every_epoch(plan, cache):
    seen, first = set(), {}
    for a, b, label, row in pairs(plan, 40):
        first.setdefault(int(row), set()).add(int(a[0]))
        seen |= {int(t) for t in a}
        if label == IS_NEXT:
            seen |= {int(t) for t in b}
    assert seen == {int(t) for t in cache.tokens if t >= 1000}
    assert len(first) == plan.num_rows and all(len(starts) == 1 for starts in first.values())


def boundaries(sentences):
    """Return where sentences begin and end within a document, pieces of long ones included."""
    longest = (LENGTH - 3) // 2
    cuts = {0}
    for size in sentences:
        start = max(cuts)
        cuts |= {start + cut for cut in range(0, size, longest)} | {start + size}
    return cuts


def test_pairs_are_whole_sentences(plan):
    for a, b, label, _ in pairs(plan, 20):
        document, place = divmod(int(a[0]), 1000)
        sentences = SENTENCES[document - 1]
        if len(sentences) > 1 and max(sentences) <= 8 and len(a) + len(b) > 8:
            assert {place, place + len(a)} <= boundaries(sentences)
            if label == IS_NEXT:
                assert place + len(a) + len(b) in boundaries(sentences)


def test_the_split_moves_from_epoch_to_epoch(plan):
    splits = {}
    for a, _, _, row in pairs(plan, 30):
        if a[0] // 1000 == 5:
            splits.setdefault(int(row), set()).add(len(a))
    assert all(len(found) > 2 for found in splits.values())


def test_full_rows_look_alike_whatever_their_label(plan):
    """A chunk inside a document is filled up from elsewhere as full as from its own."""
    sizes = {IS_NEXT: [], RANDOM: []}
    for a, b, label, _ in pairs(plan, 60):
        if a[0] // 1000 == 5 and a[0] % 1000 < 70:
            sizes[int(label)].append(len(a) + len(b))
    assert abs(np.mean(sizes[IS_NEXT]) - np.mean(sizes[RANDOM])) < 3


def test_rows_do_not_depend_on_the_rows_beside_them(plan):
    whole = plan.fetch(1, np.arange(plan.num_rows))
    part = plan.fetch(1, np.array([5, 0]))
    for name, array in part.items():
        np.testing.assert_array_equal(array, whole[name][[5, 0]])


def test_evaluation_order_is_fixed(cache):
    plan = PairPlan(cache, LENGTH, 0, False, bos_id=BOS, eos_id=EOS)
    index = np.arange(plan.num_rows)
    first, second = plan.fetch(0, index), plan.fetch(3, index)
    assert first["example_ids"].tolist() == index.tolist()
    np.testing.assert_array_equal(first["tokens"], second["tokens"])


def test_long_documents_are_cut_as_greedily_as_a_loop_would():
    rng = np.random.default_rng(0)
    sentences = [rng.integers(1, 9, n).tolist() for n in (300, 1, 50, 2)]
    cache = FakeCache([sum(s) for s in sentences], sentences)
    plan = PairPlan(cache, LENGTH, 0, False, bos_id=BOS, eos_id=EOS)
    chunks = 0
    for document in sentences:
        left = 0
        for size in document:
            if size > left:
                chunks, left = chunks + 1, LENGTH - 3
            left -= size
    assert plan.num_rows == chunks


def test_refuses_what_cannot_be_paired():
    special = dict(bos_id=BOS, eos_id=EOS)
    with pytest.raises(ConfigError, match=r"data\.sentences"):
        PairPlan(FakeCache([5, 5]), LENGTH, 0, True, **special)
    with pytest.raises(DataError, match="two documents"):
        PairPlan(FakeCache([5, 0], [[5], []]), LENGTH, 0, True, **special)
    with pytest.raises(ConfigError, match=r"train\.length"):
        PairPlan(FakeCache([5, 5], [[5], [5]]), 4, 0, True, **special)
