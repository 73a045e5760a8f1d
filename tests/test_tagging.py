"""Each word is labelled once, on its first piece, whatever the rows; answers are joined again."""

import dataclasses
import types

import jax
import numpy as np
import pytest
import scipy.special
import torch
from fakes import BOS, EOS, FakeTokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from measures import intervals_by, scores_by
from sklearn.metrics import accuracy_score, f1_score, precision_score, recall_score
from test_objective_models import Fixed
from transformers import BertTokenizer, GPT2Tokenizer

from flaxlm.data.hugging_face import load_hugging_face
from flaxlm.data.pipeline import EvalBatches
from flaxlm.data.sources import DataConfig
from flaxlm.data.tokenizer import ByteTokenizer, TokenizerConfig, train_tokenizer
from flaxlm.errors import ConfigError, DataError
from flaxlm.evaluation import evaluate, report
from flaxlm.evaluation.evaluate import Evaluation
from flaxlm.metrics.entities import tag_measure
from flaxlm.objectives import TokenClassification
from flaxlm.objectives.token_classification import encode_words, word_windows
from flaxlm.tasks import TASKS
from flaxlm.tasks.tagging import task_of_labels
from flaxlm.tasks.task import values_of

LABELS = ("O", "B-A", "I-A")
FAKE = FakeTokenizer()


def examples_of(sentences, labels=LABELS):
    """Return examples of lists of words, each with the space before it; tags by their length."""
    return [
        {"id": i, "words": words, "tag_set": labels, "tags": [len(w) % len(labels) for w in words]}
        for i, words in enumerate(sentences)
    ]


def rows_of(objective, examples, length, tokenizer=FAKE, size=None):
    """Return (plan, all its rows as one batch)."""
    plan = objective.plan(examples, length, tokenizer, seed=0, shuffle=False)
    size = size or plan.num_rows
    batches = EvalBatches(plan, objective, tokenizer, length, 0, size)
    parts = [batches[step] for step in range(len(batches))]
    return plan, {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


# --- windows


@st.composite
def layouts(draw):
    room = draw(st.integers(1, 12))
    sizes = draw(st.lists(st.integers(1, room), min_size=1, max_size=40))
    return sizes, room, draw(st.integers(1, room)), draw(st.booleans())


@settings(max_examples=300, deadline=None)
@given(layouts())
def test_every_word_is_scored_once_where_it_has_most_context(layout):
    sizes, room, stride, causal = layout
    found = word_windows(sizes, room, stride, causal)
    assert sorted(np.concatenate([w.scored for w in found])) == list(range(len(sizes)))
    assert (found[0].first, found[-1].stop) == (0, len(sizes))

    def context(window, word):
        before, behind = sum(sizes[window.first : word]), sum(sizes[word + 1 : window.stop])
        return before if causal else min(before, behind)

    for window in found:
        assert sum(sizes[window.first : window.stop]) <= room and len(window.scored)
        for word in window.scored:
            holding = [w for w in found if w.first <= word < w.stop]
            assert context(window, word) == max(context(w, word) for w in holding)
    if len(found) > 1:  # the last row takes as many words before it as there is room for
        last = found[-1]
        assert sum(sizes[last.first - 1 : last.stop]) > room


def test_rows_overlap_as_the_stride_says():
    found = word_windows([1] * 11, 4, 2)
    assert [(w.first, w.stop) for w in found] == [(0, 4), (2, 6), (4, 8), (6, 10), (7, 11)]
    assert [w.scored.tolist() for w in found] == [[0, 1, 2], [3, 4], [5, 6], [7, 8], [9, 10]]
    causal = word_windows([1] * 11, 4, 2, causal=True)
    assert [w.scored.tolist() for w in causal] == [[0, 1, 2, 3], [4, 5], [6, 7], [8, 9], [10]]
    # Where the stride would not reach another word, the row begins where it does.
    assert [(w.first, w.stop) for w in word_windows([1, 1, 3], 3, 1)] == [(0, 2), (2, 3)]


SENTENCES = st.lists(
    st.lists(st.text("abcXY", min_size=1, max_size=9), min_size=1, max_size=12).map(
        lambda words: [words[0], *(f" {word}" for word in words[1:])]
    ),
    min_size=1,
    max_size=5,
)


@settings(max_examples=100, deadline=None)
@given(SENTENCES, st.integers(3, 20), st.integers(1, 18), st.sampled_from(["encoder", "decoder"]))
def test_rows_hold_every_word_and_label_it_on_its_first_piece(sentences, length, stride, model):
    stride = min(stride, length - 2)
    objective = TokenClassification(labels=LABELS, stride=stride, model=model)
    examples = examples_of(sentences)
    plan, batch = rows_of(objective, examples, length)
    sizes = [[min(len(word), length - 2) for word in words] for words in sentences]
    expected = [
        w for part in sizes for w in word_windows(part, length - 2, stride, model == "decoder")
    ]
    for row, window in zip(batch["words"], expected, strict=True):
        assert (row[row > 0] - 1).tolist() == window.scored.tolist()
    seen = []
    for row in range(plan.num_rows):
        tokens = batch["tokens"][row][batch["segment_ids"][row] > 0]
        example = examples[batch["owner"][row]]
        pieces = [FAKE.encode(word)[: length - 2] for word in example["words"]]
        assert (tokens[0], tokens[-1]) == (BOS, EOS) and len(tokens) <= length
        for place in np.flatnonzero(batch["words"][row]):
            word = batch["words"][row, place] - 1
            seen.append((batch["owner"][row], word))
            own = pieces[word]
            assert tokens[place : place + len(own)].tolist() == own
            before = [t for ids in pieces[:word] for t in ids][-(place - 1) :] if place > 1 else []
            assert tokens[1:place].tolist() == before
            assert batch["labels"][row, place] == example["tags"][word]
    assert sorted(seen) == [(i, w) for i, words in enumerate(sentences) for w in range(len(words))]
    assert (batch["weights"] == (batch["words"] > 0)).all()
    assert not batch["labels"][batch["words"] == 0].any()
    assert plan.report["examples"] == len(sentences) and plan.report["windows"] == plan.num_rows
    owners = np.bincount(batch["owner"])
    assert plan.report["split"] == np.count_nonzero(owners > 1)
    cut = sum(len(word) > length - 2 for words in sentences for word in words)
    assert plan.report["truncated"] == cut


@pytest.mark.parametrize("model", ["encoder", "decoder"])
def test_what_a_token_alone_decides_is_the_same_in_windows_of_any_size(model):
    """Of a model without attention, no window's border can be seen in the joined answers."""
    rng = np.random.default_rng(0)
    draw = rng.integers(1, 6, (20, 14))
    examples = examples_of([[f"{'abcdefgh'[n]}{'x' * n}" for n in row] for row in draw])
    table = rng.normal(size=(FAKE.vocab_size, len(LABELS))).astype(np.float32)
    task, found = TASKS["ner"](), []
    for length, stride, size in ((200, 0, None), (16, 1, 7), (16, 14, 64), (9, 3, 1)):
        objective = TokenClassification(labels=LABELS, stride=stride, model=model)
        plan, batch = rows_of(objective, examples, length, size=size)
        assert (plan.num_rows > 20) == (length < 200)
        logits = {"token_classification": table[batch["tokens"]]}
        outputs = jax.device_get(objective.predict(Fixed(logits), None, batch))
        answers = task.postprocess(outputs, examples)
        sums, _ = objective.loss(Fixed(logits), None, batch, None, False)
        scores = task.metrics(answers, task.golds(examples))
        found.append((values_of(answers), scores, float(sums["loss"][1]), sums["loss"][0]))
    assert all(other[:3] == found[0][:3] for other in found[1:]) and found[0][2] == 20 * 14
    np.testing.assert_allclose([f[3] for f in found], found[0][3], rtol=1e-5)
    expected = [
        tuple(LABELS[table[FAKE.encode(word)[0]].argmax()] for word in example["words"])
        for example in examples
    ]
    assert [tagged.tags for tagged in found[0][0]] == expected
    assert len({tag for tags in expected for tag in tags}) > 1
    sure = scipy.special.log_softmax(table, axis=-1)[
        [FAKE.encode(word)[0] for word in examples[3]["words"]]
    ]
    assert answers[3].score == pytest.approx(float(sure.max(-1).sum()), rel=1e-5)
    np.testing.assert_allclose(answers[3].scores, np.exp(sure), rtol=1e-5)
    order = rng.permutation(len(outputs["owner"]))  # the order of rows says nothing
    shuffled = {name: array[order] for name, array in outputs.items()}
    assert values_of(task.postprocess(shuffled, examples)) == found[0][0]
    with pytest.raises(DataError, match=r"word 14 of example 19 was tagged 0 times"):
        outputs["words"][outputs["words"] + 100 * outputs["owner"][:, None] == 1914] = 0
        task.postprocess(outputs, examples)
    with pytest.raises(DataError, match=r"word \d+ of example \d+ was tagged \d+ times"):
        task.postprocess(outputs | {"words": np.ones_like(outputs["words"])}, examples)


def test_answers_of_batches_that_were_cut_to_other_widths_are_the_same(monkeypatch):
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 9, 30)
    examples = examples_of([["ab"[n % 2] * n for n in rng.integers(1, 4, m)] for m in lengths])
    objective, task, found = TokenClassification(labels=LABELS), TASKS["pos"](), []
    plan = objective.plan(examples, 12, FAKE, seed=0, shuffle=False)
    table = rng.normal(size=(FAKE.vocab_size, len(LABELS))).astype(np.float32)

    def predict(params, batch):
        logits = {"token_classification": table[batch["tokens"]]}
        return objective.predict(Fixed(logits), params, batch)

    for buckets in ((), (5, 8)):
        batches = EvalBatches(plan, objective, FAKE, 12, 0, 4, buckets)
        made = [jax.tree.map(jax.numpy.asarray, batches[step]) for step in range(len(batches))]
        assert (len({batch["tokens"].shape for batch in made}) > 1) == bool(buckets)
        monkeypatch.setattr(evaluate, "global_batches", lambda *_, made=made: iter(made))
        program = types.SimpleNamespace(predict=predict)
        _, outputs = evaluate.judged(program, None, [batches], sums=False, outputs=True)
        found.append(values_of(task.postprocess(outputs, examples)))
    assert found[0] == found[1]


# --- pieces


@pytest.mark.parametrize(
    "name,data",
    [
        ("bert-base-uncased", "wnut17/dev.conll"),
        ("bert-base-chinese", "ud_chinese_gsdsimp/dev.conllu.gz"),
    ],
)
def test_rows_and_first_pieces_are_those_of_transformers(shared, name, data):
    path = shared(f"weights/vocab/{name}")
    task = TASKS["wnut17" if "wnut" in data else "ud_pos"]()
    labels = task.defaults["objective"]["labels"]
    config = DataConfig(path=str(shared(f"data/{data}")), split="whole")
    examples = task.examples(config, "test", labels)[:400]
    objective, length = TokenClassification(labels=labels), 400
    _, batch = rows_of(objective, examples, length, load_hugging_face(path))
    words = [[word.strip() for word in e["words"]] for e in examples]
    read = BertTokenizer.from_pretrained(path)(words, is_split_into_words=True)
    wordless = 0
    for row, example in enumerate(examples):
        owners = read.word_ids(row)
        first = [owners.index(w) if w in owners else -1 for w in range(len(words[row]))]
        wordless += first.count(-1)  # they lose a word without a piece, we do not
        if -1 not in first:
            real = batch["segment_ids"][row] > 0
            assert batch["tokens"][row][real].tolist() == read["input_ids"][row]
            places = np.flatnonzero(batch["words"][row])
            assert places.tolist() == first
            assert batch["labels"][row][places].tolist() == example["tags"]
        assert (batch["words"][row] > 0).sum() == len(words[row])
    assert wordless < 5


def test_a_word_keeps_the_space_before_it_where_the_vocabulary_has_it_so(shared):
    path = shared("weights/vocab/gpt2")
    task = TASKS["ud_pos"]()
    config = DataConfig(path=str(shared("data/ud_english_ewt/dev.conllu.gz")), split="whole")
    examples = task.examples(config, "test", task.defaults["objective"]["labels"])[:300]
    objective = TokenClassification(labels=task.defaults["objective"]["labels"], model="decoder")
    _, batch = rows_of(objective, examples, 300, load_hugging_face(path))
    library, equal = GPT2Tokenizer.from_pretrained(path), 0
    for row, example in enumerate(examples):
        whole = library(example["text"], return_offsets_mapping=True)
        tokens = batch["tokens"][row][batch["segment_ids"][row] > 0][1:-1].tolist()
        if tokens != whole["input_ids"]:  # a piece across two words, such as `..`
            continue
        equal += 1
        starts = np.cumsum([0, *map(len, example["words"][:-1])])
        begins = [begin for begin, _ in whole["offset_mapping"]]
        places = np.flatnonzero(batch["words"][row]) - 1
        assert [begins[place] for place in places] == starts.tolist()
    assert equal > 240


def test_spaces_are_pieces_only_where_the_vocabulary_has_them(shared):
    words = ["a", " b", "\u200b", " 的"]
    found, unknown = encode_words(ByteTokenizer(), words)
    assert bytes(int(i) - 5 for ids in found for i in ids).decode() == "".join(words)
    assert unknown == 0
    text = ["a cat sat on a mat", "the cats", "b b b"] * 20
    trained = train_tokenizer(TokenizerConfig("char", sentinels=0, byte_fallback=False), text)
    assert [trained.pieces(ids) for ids in encode_words(trained, ["a", " b"])[0]] == [
        ["a"],
        ["▁", "b"],
    ]
    bert = load_hugging_face(shared("weights/vocab/bert-base-uncased"))
    found, unknown = encode_words(bert, words)
    assert [bert.pieces(ids) for ids in found] == [["a"], ["b"], ["[UNK]"], ["的"]]
    assert unknown == 1
    llama = load_hugging_face(shared("weights/stories260K/hf"))
    found, _ = encode_words(llama, ["once", " upon"])
    assert [ids.tolist() for ids in found] == [llama.encode("once"), llama.encode("upon")]


# --- losses, scores, refusals


def test_the_loss_is_the_mean_over_words_of_torch():
    objective = TokenClassification(labels=LABELS)
    _, batch = rows_of(objective, examples_of([["a", " bb", " ccc"], [" dddd"] * 9]), 16)
    logits = np.random.default_rng(0).normal(size=(*batch["tokens"].shape, 3)).astype(np.float32)
    labels = torch.from_numpy(np.where(batch["weights"] > 0, batch["labels"], -100)).long()
    fixed = Fixed({})
    fixed.apply = lambda *args, **options: {"token_classification": logits}
    for train, smoothing, classes in ((False, 0.0, ()), (True, 0.1, ()), (True, 0.0, (1, 3, 0.5))):
        changed = dataclasses.replace(objective, label_smoothing=smoothing, class_weights=classes)
        (terms, sums) = changed.loss(fixed, None, batch, None, train)
        expected = torch.nn.functional.cross_entropy(
            torch.from_numpy(logits).reshape(-1, 3),
            labels.reshape(-1),
            weight=torch.tensor(classes, dtype=torch.float32) if classes else None,
            label_smoothing=smoothing,
        )
        total, weight = terms["loss"]
        assert weight == changed.weights(batch)["loss"]
        np.testing.assert_allclose(float(total / weight), float(expected), rtol=1e-6)
        right = (logits.argmax(-1) == batch["labels"])[batch["weights"] > 0].sum()
        assert tuple(map(float, sums["accuracy"])) == (right, 12)
    still, _ = changed.loss(fixed, None, batch, None, False)
    assert float(still["loss"][1]) == 12
    with pytest.raises(ConfigError, match="one positive number for each of the 3 labels"):
        TokenClassification(labels=LABELS, class_weights=(1.0, 2.0))


def test_tag_scores_are_those_of_scikit_learn_and_draw_whole_sentences():
    rng = np.random.default_rng(1)
    golds = [rng.choice(list("ABCD"), n, p=[0.6, 0.2, 0.15, 0.05]) for n in rng.integers(1, 9, 80)]
    said = [np.where(rng.random(len(g)) < 0.7, g, rng.choice(list("ABCE"), len(g))) for g in golds]
    scores = scores_by(tag_measure, said, golds)
    options = {"average": "macro", "zero_division": 0.0}
    flat = np.concatenate(golds), np.concatenate(said)
    assert scores == {
        "accuracy": accuracy_score(*flat),
        "precision_macro": precision_score(*flat, **options),
        "recall_macro": recall_score(*flat, **options),
        "f1_macro": f1_score(*flat, **options),
    }
    ours = intervals_by(tag_measure, said, golds, resamples=4000)
    assert ours.keys() == scores.keys()
    draws = rng.integers(0, 80, (400, 80))
    plain = {name: [] for name in scores}
    for rows in draws:
        pair = [np.concatenate([side[r] for r in rows]) for side in (golds, said)]
        plain["accuracy"].append(accuracy_score(*pair))
        plain["f1_macro"].append(f1_score(*pair, **options))
    for name in ("accuracy", "f1_macro"):
        bounds = np.quantile(plain[name], [0.025, 0.975])
        assert ours[name] == pytest.approx(bounds, abs=0.02)
    with pytest.raises(DataError, match="sequence 2: 1 tags predicted for 2 words"):
        scores_by(tag_measure, [["A"], ["A"]], [["A"], ["A", "B"]])


def test_mistakes_count_entities_or_words():
    ner, pos = TASKS["ner"](), TASKS["pos"]()
    (gold,) = ner.golds(examples_of([[" b", " ab", " a", "x"]]))
    assert gold == ((" b".strip(), "ab", "a", "x"), ("I-A", "O", "I-A", "B-A"))
    (answer,) = ner.perfect([gold])
    said = gold._replace(tags=("B-A", "I-A", "O", "B-A"))
    assert ner.mistake(answer._replace(value=said), gold) == 1.0
    assert pos.mistake(answer._replace(value=said), gold) == 3.0
    assert ner.show(said)[0] == ["b", "B-A"]
    example = {"id": "f:1", "text": "b ab ax"}
    found = Evaluation({"f1_micro": 0.0}, [example], [gold], [answer._replace(value=said)])
    lines = [" ".join(line.split()) for line in report.worst(found, ner).splitlines()]
    assert lines[-2:] == [
        "gold b/I-A ab/O a/I-A x/B-A",
        "prediction b/B-A ab/I-A a/O x/B-A (1.000)",
    ]


def test_labels_say_which_task_they_are_of():
    assert task_of_labels(LABELS) == {"name": "ner", "scheme": "bio"}
    assert task_of_labels(("O", "I-PER", "I-LOC")) == {"name": "ner", "scheme": "iob1"}
    closed = ("O", *(f"{letter}-X" for letter in "BMES"))
    assert task_of_labels(closed) == {"name": "ner", "scheme": "bmes"}
    assert task_of_labels(("NOUN", "VERB")) == {"name": "pos"}


@pytest.mark.parametrize(
    "change,length,match",
    [
        ({"tags": [0, 3]}, 9, r"example 0: label 3 is not in 0 … 2 \(O, B-A, I-A\)"),
        ({"tags": [0]}, 9, "example 0: 2 words and 1 tags"),
        ({"words": []}, 9, "example 0 has no words"),
        ({"words": None}, 9, "'words' is NoneType, a list is needed"),
        ({}, 2, "train.length=2 leaves no room for words"),
        ({"stride": 8}, 9, r"objective.stride=8 leaves words out.*holds 7 pieces"),
    ],
)
def test_what_would_lose_a_word_is_refused(change, length, match):
    objective = TokenClassification(labels=LABELS, stride=change.pop("stride", 0))
    example = examples_of([["a", " bb"]])[0] | change
    with pytest.raises((DataError, ConfigError), match=match):
        objective.plan([example], length, FAKE, seed=0, shuffle=True)
