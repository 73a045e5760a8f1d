"""What stands in the rows of the language models, by slower and simpler algorithms."""

import collections
import itertools
import math

import numpy as np
import pytest
from fakes import BOS, EOS, FakeCache, FakeTokenizer, text_of
from scipy import stats

from flaxlm.data.order import RowRandom
from flaxlm.data.pipeline import Batches, EvalBatches
from flaxlm.errors import ConfigError
from flaxlm.objectives import CausalLM, MaskedLM, SpanCorruption
from flaxlm.objectives.masked_lm import _fitting

TOKENIZER = FakeTokenizer()
LENGTHS = [30, 1, 2, 7, 0, 55, 4, 4, 4, 90, 13]
LENGTH = 24


def all_rows(objective, source, shuffle=False, seed=0, length=LENGTH):
    """Return one epoch of a source as one batch."""
    plan = objective.plan(source, length, TOKENIZER, seed=0, shuffle=shuffle)
    kind = Batches if shuffle else EvalBatches
    return kind(plan, objective, TOKENIZER, length, seed, plan.num_rows)[0]


# --- causal and prefix LM


def test_causal_targets_are_the_next_tokens_of_the_same_document():
    cache = FakeCache(LENGTHS)
    batch = all_rows(CausalLM(), cache)
    scored = batch["weights"] > 0
    assert not (batch["targets"][scored] == BOS).any()
    found = batch["targets"][scored]
    assert found.tolist() == cache.tokens[cache.tokens != BOS].tolist()
    inside = scored[:, :-1]
    assert (batch["targets"][:, :-1][inside] == batch["tokens"][:, 1:][inside]).all()


def test_prefix_is_seen_and_not_scored_the_rest_is_scored():
    plain, batch = (all_rows(CausalLM(prefix=p), FakeCache(LENGTHS)) for p in (False, True))
    drawn = []
    for row in range(len(batch["tokens"])):
        for segment in range(1, batch["segment_ids"][row].max() + 1):
            at = batch["segment_ids"][row] == segment
            mask, weights = batch["prefix_mask"][row][at], batch["weights"][row][at]
            prefix = int(mask.sum())
            assert mask.tolist() == [1] * prefix + [0] * (len(mask) - prefix)
            assert 1 <= prefix <= max(1, len(mask) - 1)
            expected = plain["weights"][row][at].copy()
            expected[: prefix - 1] = 0  # their targets are inside the prefix
            assert weights.tolist() == expected.tolist()
            if len(mask) == LENGTH:
                drawn.append(prefix)
    assert not batch["prefix_mask"][batch["segment_ids"] == 0].any()
    assert len(set(drawn)) > 1


# --- masked LM


def originals(batch):
    """Return the rows as they were before masking."""
    tokens = batch["tokens"].copy()
    for row, positions, targets, weights in zip(
        tokens, batch["target_positions"], batch["targets"], batch["weights"], strict=True
    ):
        used = weights > 0
        assert (np.diff(positions[used]) > 0).all()
        assert not positions[~used].any() and not targets[~used].any()
        row[positions[used]] = targets[used]
    return tokens


def test_masked_rows_restore_to_framed_pieces_of_all_text():
    cache = FakeCache(LENGTHS)
    batch = all_rows(MaskedLM(nsp=False), cache)
    rows = originals(batch)
    found = collections.Counter(rows[rows > 4].tolist())
    text = np.concatenate([text_of(document) for document in cache.documents])
    assert found == collections.Counter(text.tolist())
    for row, segments, positions in zip(
        rows, batch["segment_ids"], batch["positions"], strict=True
    ):
        for segment in range(1, segments.max() + 1):
            piece = row[segments == segment]
            assert piece[0] == BOS and piece[-1] == EOS and (piece[1:-1] > 4).all()
            assert positions[segments == segment].tolist() == list(range(len(piece)))


@pytest.mark.parametrize("length", [12, LENGTH, 5000])
def test_exactly_the_share_of_each_row_is_selected_and_nothing_special(length):
    objective = MaskedLM(nsp=False, rate=0.15)
    batch = all_rows(objective, FakeCache([*LENGTHS, 9000]), length=length)
    real = (batch["segment_ids"] > 0).sum(axis=1)
    candidates = (originals(batch) > 4).sum(axis=1)
    budget = np.minimum(np.maximum(np.round(0.15 * real), 1), candidates)
    assert batch["weights"].sum(axis=1).tolist() == budget.tolist()
    assert (batch["targets"][batch["weights"] > 0] > 4).all()


def test_every_position_is_as_likely_and_shares_are_80_10_10():
    cache = FakeCache([LENGTH - 2])
    objective = MaskedLM(nsp=False, rate=0.25)
    plan = objective.plan(cache, LENGTH, TOKENIZER, seed=0, shuffle=True)
    batch = Batches(plan, objective, TOKENIZER, LENGTH, 0, 4000)[0]
    used = batch["weights"] > 0
    counts = np.bincount(batch["target_positions"][used], minlength=LENGTH)
    assert counts[0] == counts[-1] == 0
    # Positions of one row exclude each other: the statistic is scaled to fit (finite population).
    chosen, of = used.sum(axis=1)[0], LENGTH - 2
    chi2 = ((counts[1:-1] - counts.sum() / of) ** 2).sum() / (counts.sum() / of)
    assert stats.chi2.sf(chi2 * (of - 1) / (of - chosen), of - 1) > 1e-3
    now = np.take_along_axis(batch["tokens"], batch["target_positions"], axis=1)[used]
    before = batch["targets"][used]
    masked = (now == TOKENIZER.mask_id).mean()
    random = ((now != TOKENIZER.mask_id) & (now != before)).mean()
    assert abs(masked - 0.8) < 0.01 and abs(random - 0.1 * 94 / 95) < 0.008
    drawn = now[(now != TOKENIZER.mask_id) & (now != before)]
    assert drawn.min() == 5 and drawn.max() == TOKENIZER.vocab_size - 21  # no sentinel
    assert len(set(drawn.tolist())) == 95


def words_of(row):
    """Return the words of a row as lists of columns."""
    words = []
    for column, token in enumerate(row):
        if token <= 4:
            continue
        if not words or TOKENIZER.word_starts[token] or row[column - 1] <= 4:
            words.append([])
        words[-1].append(column)
    return words


def test_whole_words_are_selected_greedily_in_random_order():
    objective = MaskedLM(nsp=False, whole_word=True, rate=0.2)
    cache = FakeCache([*LENGTHS, 400])
    plan = objective.plan(cache, LENGTH, TOKENIZER, seed=0, shuffle=True)
    batch = Batches(plan, objective, TOKENIZER, LENGTH, 3, 60)[0]
    rng = RowRandom(3, np.arange(60)).bits("select", LENGTH)
    rows = originals(batch)
    for i, row in enumerate(rows):
        budget = max(1, round(0.2 * (batch["segment_ids"][i] > 0).sum()))
        expected, words = [], sorted(words_of(row), key=lambda word: (rng[i][word[0]], word))
        for word in words:
            if len(expected) + len(word) <= budget:
                expected += word
        expected = expected or words[0][:budget]
        used = batch["weights"][i] > 0
        assert batch["target_positions"][i][used].tolist() == sorted(expected)


def test_whole_words_longer_than_the_budget_give_a_part():
    tokenizer = FakeTokenizer()
    tokenizer.word_starts = np.zeros(120, bool)  # a row is one word
    objective = MaskedLM(nsp=False, whole_word=True)
    plan = objective.plan(FakeCache([22, 22]), LENGTH, tokenizer, seed=0, shuffle=False)
    batch = EvalBatches(plan, objective, tokenizer, LENGTH, 0, 2)[0]
    assert batch["weights"].sum(axis=1).tolist() == [4, 4]


def plain_fitting(words, budget):
    """Return which tokens of a row are taken, its words in turn; `words` ends where text does."""
    taken, left = [], budget
    for _, word in itertools.groupby(words):
        size = len(list(word))
        taken += [size <= left] * size
        left -= size if size <= left else 0
    return taken if any(taken) else [column < budget for column in range(len(words))]


@pytest.mark.parametrize("longest", [1, 3, 12])
def test_the_words_taken_at_once_are_those_taken_one_by_one(longest):
    rng = np.random.default_rng(longest)
    rows, length = 400, 40
    words = np.cumsum(rng.random((rows, length)) < 2 / (1 + longest), axis=1)
    size = rng.integers(0, length + 1, rows)
    real = np.arange(length) < size[:, None]
    words[~real] = length + 1
    budget = rng.integers(1, 15, rows)
    taken = _fitting(words, real, budget)
    for row in range(rows):
        expected = plain_fitting(words[row, : size[row]].tolist(), budget[row])
        assert taken[row].tolist() == expected + [False] * (length - size[row]), row


def test_sentence_pairs_keep_their_labels_and_types():
    sentences = [[7, 5, 6], [9], [3] * 6, [20, 4]]
    cache = FakeCache([sum(s) for s in sentences], sentences)
    batch = all_rows(MaskedLM(), cache)
    rows = originals(batch)
    assert ((rows == EOS).sum(axis=1) == 2).all() and (rows[:, 0] == BOS).all()
    assert set(batch["labels"].tolist()) <= {0, 1} and batch["token_types"].max() == 1


# --- span corruption


def restore(encoder, targets):
    """Return the text of one piece, each sentinel replaced by its span, and the spans."""
    number = {int(s): i for i, s in enumerate(TOKENIZER.sentinel_ids)}
    assert encoder[-1] == targets[-1] == EOS
    spans = []
    for token in targets[:-1]:
        if int(token) in number:
            assert number[int(token)] == len(spans)
            spans.append([])
        else:
            spans[-1].append(int(token))
    text, seen = [], 0
    for token in encoder[:-1]:
        if int(token) in number:
            assert number[int(token)] == seen
            text += spans[seen]
            seen += 1
        else:
            text.append(int(token))
    assert seen == len(spans) and all(spans)
    return text, spans


@pytest.mark.parametrize(
    "fields,length,sizes",
    [
        ({}, LENGTH, LENGTHS),
        ({"density": 0.5, "mean_span": 1.5}, LENGTH, LENGTHS),
        ({"target_length": 9}, LENGTH, LENGTHS),
        ({}, 96, [100, 60, 70, 55, 58]),  # rows that are half empty
    ],
)
def test_spans_put_back_give_all_text_once(fields, length, sizes):
    objective = SpanCorruption(**fields)
    texts = [list(range(1000 * d + 200, 1000 * d + 200 + n)) for d, n in enumerate(sizes)]
    batch = all_rows(objective, FakeCache.of(texts), length=length)
    found, pieces = [], 0
    for i in range(len(batch["tokens"])):
        segments = batch["segment_ids"][i]
        assert segments.max() == batch["encoder_segment_ids"][i].max()
        for segment in range(1, segments.max() + 1):
            at, above = segments == segment, batch["encoder_segment_ids"][i] == segment
            encoder, targets = batch["encoder_tokens"][i][above], batch["targets"][i][at]
            text, spans = restore(encoder, targets)
            noise, number = objective.spans(np.array([len(text)]))
            assert sum(map(len, spans)) == noise[0] and len(spans) == number[0]
            assert (np.diff(text) == 1).all()
            found += text
            pieces += 1
            assert batch["tokens"][i][at].tolist() == [0, *targets[:-1].tolist()]
            for name, size in (("positions", at), ("encoder_positions", above)):
                assert batch[name][i][size].tolist() == list(range(size.sum()))
    assert sorted(found) == sorted(itertools.chain(*texts))
    np.testing.assert_array_equal(batch["weights"], batch["segment_ids"] > 0)


def cut(keys, begin, size, count):
    """Return the sizes of `count` spans of the columns from `begin`, `size` of them.

    A span begins at the first column, the others at the columns with the smallest keys.
    """
    others = sorted(range(begin + 1, begin + size), key=lambda column: (keys[column], column))
    return np.diff([*sorted([begin, *others[: count - 1]]), begin + size]).tolist()


def plain_corruption(text, lengths, keys, objective):
    """Return the sides of a row, each as columns (token, segment, position), a piece at a time."""
    encoder, decoder, begin = [], [], 0
    for segment, n in enumerate(lengths, 1):
        removed_tokens, spans = (int(x[0]) for x in objective.spans([n]))
        removed = cut(keys, begin, removed_tokens, spans)
        kept = cut(keys, begin + removed_tokens, n - removed_tokens, spans) if n > 1 else [0]
        above, below, at = [], [], begin
        for sentinel, stay, go in zip(TOKENIZER.sentinel_ids, kept, removed, strict=False):
            above += [*text[at : at + stay], sentinel]
            below += [sentinel, *text[at + stay : at + stay + go]]
            at += stay + go
        for side, piece in ((encoder, [*above, EOS]), (decoder, [*below, EOS])):
            side += [(token, segment, position) for position, token in enumerate(piece)]
        begin += n
    return encoder, decoder


@pytest.mark.parametrize(("density", "mean_span"), [(0.15, 3.0), (0.4, 1.0), (0.6, 2.5)])
def test_spans_cut_at_once_are_those_cut_one_by_one(density, mean_span):
    objective = SpanCorruption(density=density, mean_span=mean_span)
    rng = np.random.default_rng(int(100 * density))
    cache = FakeCache(np.minimum(rng.geometric(0.08, 500), 90).tolist())
    plan = objective.plan(cache, 48, TOKENIZER, seed=0, shuffle=True)
    numbers = np.arange(plan.num_rows)
    raw, random = plan.fetch(0, numbers), RowRandom(3, numbers)
    keys = random.bits("spans", raw["tokens"].shape[1])
    text = raw["tokens"].copy()
    batch = objective.preprocess(raw, random, TOKENIZER, 48)
    names = (
        ("encoder_tokens", "encoder_segment_ids", "encoder_positions"),
        ("targets", "segment_ids", "positions"),
    )
    for row in numbers:
        lengths = raw["lengths"][row][raw["lengths"][row] > 0].tolist()
        sides = plain_corruption(text[row].tolist(), lengths, keys[row].tolist(), objective)
        for side, columns in zip(sides, names, strict=True):
            expected = np.zeros((3, batch[columns[0]].shape[1]), int)
            expected[:, : len(side)] = np.transpose(side)
            found = [batch[name][row].tolist() for name in columns]
            assert found == expected.tolist(), (row, columns)


def test_numbers_of_spans_are_those_of_the_paper():
    # T5's pre-training: 568 tokens become 512 for the encoder and 114 for the decoder.
    objective = SpanCorruption()
    assert [n[0] for n in objective.spans(np.array([568]))] == [85, 28]
    assert objective.costs(np.array([568])).tolist() == [[512, 114]]
    assert objective.decoder_length(512) == 120
    n = np.arange(1, 3000)
    noise, spans = objective.spans(n)
    assert (noise[n >= 4] == np.rint(n[n >= 4] * 0.15)).all() and (spans <= noise).all()


def test_every_way_to_cut_is_as_likely():
    n = 14
    objective = SpanCorruption(density=0.36, mean_span=1.7)  # 5 removed, 3 spans
    assert [x[0] for x in objective.spans(np.array([n]))] == [5, 3]
    plan = objective.plan(FakeCache.of([range(200, 200 + n)]), 20, TOKENIZER, seed=0, shuffle=True)
    batch = Batches(plan, objective, TOKENIZER, 20, 0, 12_000)[0]
    names = ("encoder_tokens", "encoder_segment_ids", "targets", "segment_ids")
    sides = np.stack([np.pad(batch[n], ((0, 0), (0, 20 - batch[n].shape[1]))) for n in names], 1)
    rows, counts = np.unique(sides, axis=0, return_counts=True)  # one text: a row is a way to cut
    found = collections.Counter()
    for (encoder, above, targets, below), count in zip(rows, counts.tolist(), strict=True):
        _, spans = restore(encoder[above > 0], targets[below > 0])
        found[tuple((span[0], len(span)) for span in spans)] += count
    ways = math.comb(4, 2) * math.comb(8, 2)  # compositions of 5 and of 9 into 3 parts
    assert len(found) == ways
    assert stats.chisquare(list(found.values())).pvalue > 1e-3


def test_pieces_need_no_more_sentinels_than_there_are():
    tokenizer = FakeTokenizer(sentinels=3)
    objective = SpanCorruption()
    plan = objective.plan(FakeCache([500]), 128, tokenizer, seed=0, shuffle=False)
    batch = EvalBatches(plan, objective, tokenizer, 128, 0, plan.num_rows)[0]
    assert np.isin(batch["targets"], tokenizer.sentinel_ids).sum() > 0
    raw = plan.fetch(0, np.arange(plan.num_rows))
    assert objective.spans(raw["lengths"])[1].max() == 3
    with pytest.raises(ConfigError, match=r"tokenizer\.sentinels"):
        objective.plan(FakeCache([5]), 16, FakeTokenizer(sentinels=0), seed=0, shuffle=False)
    with pytest.raises(ConfigError, match=r"train\.length=1 "):
        objective.plan(FakeCache([5]), 1, TOKENIZER, seed=0, shuffle=False)
