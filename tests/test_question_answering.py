"""Windows, labels and spans: no answer is lost between a text's characters and a model's rows."""

import itertools
import json

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from fakes import BOS, EOS, FakeTokenizer
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_objective_models import Fixed

from flaxlm.data.hugging_face import load_hugging_face
from flaxlm.data.pipeline import Batches, EvalBatches
from flaxlm.data.sources import DataConfig
from flaxlm.data.template import Template
from flaxlm.data.vocabulary import ByT5Tokenizer, ByteTokenizer
from flaxlm.errors import ConfigError, DataError
from flaxlm.metrics.answers import span_values
from flaxlm.objectives.question_answering import QuestionAnswering, context_spans, shorter_side
from flaxlm.objectives.supervised import best_window
from flaxlm.tasks import TASKS
from flaxlm.tasks.answer_spans import Span, best_spans, distinct, locate
from flaxlm.tasks.question_answering import Found
from flaxlm.tasks.task import Answer

FAKE = FakeTokenizer()
CONTEXT = "abcdefghijklmnopqrstuvwxyz"
EXAMPLES = [
    {"id": "a", "text": "who?", "text_pair": CONTEXT, "span": (3, 5)},
    {"id": "b", "text": "where is it?", "text_pair": CONTEXT, "span": (24, 26)},
    {"id": "c", "text": "why?", "text_pair": CONTEXT[:9], "span": ()},
    {"id": "d", "text": "when?", "text_pair": CONTEXT[:9], "span": None},
]


def rows_of(objective, examples, length=20, tokenizer=FAKE):
    """Return (plan, its rows as one evaluation batch)."""
    plan = objective.plan(examples, length, tokenizer, seed=0, shuffle=False)
    return plan, EvalBatches(plan, objective, tokenizer, length, 0, plan.num_rows)[0]


def outputs_of(batch, begin_scores, end_scores):
    """Return what a model with these logits [N, L] predicts."""
    logits = np.stack([begin_scores, end_scores], axis=-1).astype(np.float32)
    fixed = Fixed({"question_answering": logits})
    found = QuestionAnswering().predict(fixed, None, {k: jnp.asarray(v) for k, v in batch.items()})
    return {name: np.asarray(array) for name, array in found.items()}


def sure(batch):
    """Return the predictions of a model that knows the labels."""
    found = {name: batch[name] for name in ("begins", "ends", "owner")}
    for side, name in enumerate(("begin_scores", "end_scores")):
        found[name] = np.zeros(batch["tokens"].shape, np.float32)
        np.put_along_axis(found[name], batch["labels"][:, side, None], 1.0, axis=1)
    found["none_scores"] = 2.0 * (batch["labels"][:, 0] == batch["none"])
    return found


# --- windows


@settings(max_examples=300, deadline=None, database=None, derandomize=True)
@given(st.integers(0, 80), st.integers(1, 30), st.integers(1, 30))
@example(303, 300, 200)  # here the length of a window decides
def test_windows_hold_every_token_and_each_has_its_most_context_in_one(size, room, stride):
    stride = min(stride, room)
    spans = context_spans(size, room, stride)
    assert all(stop == min(first + room, size) for first, stop in spans)
    assert set(np.diff([first for first, _ in spans])) <= {stride}
    assert spans[0][0] == 0 and spans[-1][1] == size
    assert len(spans) == 1 or spans[-2][1] < size  # none in vain
    chosen = best_window(spans, shorter_side)
    for token in range(size):
        best = max(
            (min(token - first, stop - 1 - token) + 0.01 * (stop - first), -number)
            for number, (first, stop) in enumerate(spans)
            if first <= token < stop
        )
        assert chosen[token] == -best[1]


@pytest.mark.parametrize("model", ["encoder", "decoder"])
def test_rows_hold_question_and_window_and_point_at_the_answer(model):
    objective = QuestionAnswering(stride=4, question_length=8, model=model)
    plan, batch = rows_of(objective, EXAMPLES)
    assert plan.report == {
        "rows": 13, "examples": 4, "windows": 13, "truncated": 1, "dropped": 0,
    }  # fmt: skip
    met = {}
    for row in range(13):
        number = batch["owner"][row]
        example = EXAMPLES[number]
        question = FAKE.encode(example["text"])[:8]
        real = batch["segment_ids"][row] > 0
        tokens = batch["tokens"][row][real].tolist()
        at = len(question) + 2
        assert tokens[:at] == [BOS, *question, EOS] and tokens[-1] == EOS
        ends = batch["ends"][row]
        assert set(np.flatnonzero(ends)) == set(range(at, len(tokens) - 1))
        first = ends[at] - 1
        context = example["text_pair"][first : first + len(tokens) - 1 - at]
        assert tokens[at:-1] == FAKE.encode(context)
        begins = np.flatnonzero(batch["begins"][row])
        assert (batch["begins"][row][begins] == ends[begins]).all()
        met.setdefault(number, []).extend(ends[begins] - 1)
        none = 0 if model == "encoder" else len(tokens) - 1
        assert batch["none"][row] == none
        begin, end = example["span"] or (99, 99)
        inside = first <= begin and end <= first + len(context)
        pointed = [at + begin - first, at + end - 1 - first] if inside else [none, none]
        assert batch["labels"][row].tolist() == pointed
        assert batch["weights"][row] == float(example["span"] is not None)
        if model == "encoder":
            types = [0] * at + [1] * (len(tokens) - 1 - at)
            assert batch["token_types"][row][: len(types)].tolist() == types
    assert {n: sorted(places) for n, places in met.items()} == {
        n: list(range(len(e["text_pair"]))) for n, e in enumerate(EXAMPLES)
    }


def test_white_space_and_parts_of_characters_point_at_no_half():
    example = {"id": "a", "text": "?", "text_pair": "x  中y", "span": (3, 4)}
    objective = QuestionAnswering(stride=4, question_length=4)
    _, batch = rows_of(objective, [example], 20, ByteTokenizer())
    at = 3
    assert batch["begins"][0][at : at + 7].tolist() == [1, 0, 0, 4, 4, 4, 5]
    assert batch["ends"][0][at : at + 7].tolist() == [1, 0, 0, 4, 4, 4, 5]
    assert batch["labels"][0].tolist() == [at + 3, at + 5]


def test_a_share_of_the_windows_without_the_answer_is_trained_on():
    examples = [e | {"id": str(n)} for n in range(40) for e in EXAMPLES[:3]]
    kept = {}
    for share in (0.0, 0.3, 1.0):
        objective = QuestionAnswering(stride=4, question_length=8, negatives=share)
        plan = objective.plan(examples, 20, FAKE, seed=3, shuffle=True)
        rows = Batches(plan, objective, FAKE, 20, 3, plan.num_rows)[0]
        held = rows["labels"][:, 0] != rows["none"]
        possible = rows["owner"] % 3 < 2
        kept[share] = {
            (owner, ends.max()) for owner, ends in zip(rows["owner"], rows["ends"], strict=True)
        }
        assert set(rows["owner"][held]) == set(np.flatnonzero(np.arange(120) % 3 < 2))
        assert set(rows["owner"][~possible]) == set(range(2, 120, 3))
        assert plan.report["dropped"] + plan.num_rows == 40 * 12
        evaluated = objective.plan(examples, 20, FAKE, seed=3, shuffle=False)
        assert evaluated.num_rows == 40 * 12
        if share == 0.0:
            assert held[possible].all()
        if share == 0.3:
            assert 0.25 < np.count_nonzero(~held & possible) / (40 * 9) < 0.35
    assert kept[0.0] < kept[0.3] < kept[1.0]


# --- losses


def test_the_loss_is_torchs_over_the_real_tokens():
    objective = QuestionAnswering(stride=4, question_length=8, label_smoothing=0.1)
    _, batch = rows_of(objective, EXAMPLES)
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(*batch["tokens"].shape, 2)).astype(np.float32)
    scores = torch.from_numpy(logits).masked_fill(
        torch.from_numpy(batch["segment_ids"] == 0)[..., None], -torch.inf
    )
    counted = batch["weights"] > 0
    assert 0 < counted.sum() < len(counted)
    fixed = Fixed({"question_answering": logits})
    (terms, sums) = objective.loss(fixed, None, batch, None, False)
    labels = torch.from_numpy(batch["labels"]).long()
    expected = sum(
        torch.nn.functional.cross_entropy(scores[counted][..., side], labels[counted, side])
        for side in (0, 1)
    )
    total, weight = terms["loss"]
    assert float(weight) == counted.sum() == float(objective.weights(batch)["loss"])
    np.testing.assert_allclose(float(total / weight), float(expected) / 2, rtol=1e-6)
    right = (scores.argmax(1) == labels)[counted].float().mean()
    np.testing.assert_allclose(float(sums["accuracy"][0] / weight), float(right), rtol=1e-6)


# --- from logits to answers


def slow_spans(outputs, row, longest):
    """Return every span of a window by definition, the best first."""
    begins, ends = outputs["begins"][row], outputs["ends"][row]
    found = []
    for i, j in itertools.product(range(len(begins)), repeat=2):
        if begins[i] and ends[j] and 0 <= j - i < longest:
            score = float(outputs["begin_scores"][row, i]) + float(outputs["end_scores"][row, j])
            found.append((-score, i, j, begins[i] - 1, ends[j]))
    return [(-score, begin, end) for score, _, _, begin, end in sorted(found)]


@pytest.mark.parametrize("longest,most", [(1, 3), (3, 1), (4, 7), (5, 2), (5, 1000), (60, 20)])
def test_best_spans_are_those_of_all_spans(longest, most):
    rng = np.random.default_rng(longest)
    shape = (150, 17)
    outputs = {
        # Few different values: ties are broken by place.
        "begin_scores": rng.integers(-3, 4, shape).astype(np.float32),
        "end_scores": rng.integers(-3, 4, shape).astype(np.float32) / 4,
        "begins": np.where(rng.random(shape) < 0.6, np.arange(17) + 1, 0),
        "ends": np.where(rng.random(shape) < 0.7, np.arange(17) + 1, 0),
    }
    outputs["begins"][0] = 0
    found = list(best_spans(outputs, longest, most))
    assert len(found) == 150 and found[0] == []
    for row, spans in enumerate(found):
        assert [tuple(span) for span in spans] == slow_spans(outputs, row, longest)[:most]


def test_answers_join_the_windows_of_a_question():
    task = TASKS["squad2"](n_best=5, max_answer_tokens=3, null_threshold=-4.0)
    examples = [e | {"id": str(n)} for n, e in enumerate(EXAMPLES * 3)]
    _, batch = rows_of(QuestionAnswering(stride=4, question_length=8), examples)
    rng = np.random.default_rng(1)
    outputs = outputs_of(batch, *rng.normal(size=(2, *batch["tokens"].shape)))
    answers = task.postprocess(outputs, examples)
    withheld = 0
    for number, (answer, asked) in enumerate(zip(answers, examples, strict=True)):
        rows = np.flatnonzero(batch["owner"] == number)
        every = sorted(s for row in rows for s in slow_spans(outputs, row, 3))[::-1]
        texts = {}
        for score, begin, end in every:
            texts.setdefault(asked["text_pair"][begin:end], score)
        best = list(texts.items())[:5]
        none = min(outputs["begin_scores"][r, 0] + outputs["end_scores"][r, 0] for r in rows)
        odds = none - best[0][1]
        total = sum(np.exp([score for _, score in best])) + np.exp(none)
        value = answer.value
        assert value.candidate == best[0][0] and value.null_odds == pytest.approx(odds, abs=1e-6)
        assert [text for text, _ in value.best] == [text for text, _ in best]
        expected = [np.exp(score) / total for _, score in best]
        np.testing.assert_allclose([share for _, share in value.best], expected, rtol=1e-5)
        empty = odds > -4.0
        withheld += empty
        assert value.text == ("" if empty else best[0][0])
        assert answer.score == pytest.approx(np.exp(none) / total if empty else expected[0])
    assert 0 < withheld < len(answers)
    plain = TASKS["squad"](n_best=5, max_answer_tokens=3).postprocess(outputs, examples)
    assert [a.value.text for a in plain] == [a.value.candidate for a in answers]
    assert all(sum(share for _, share in a.value.best) == pytest.approx(1) for a in plain)
    with pytest.raises(DataError, match="12 outputs for 13 examples"):
        task.postprocess(outputs, [*examples, examples[0]])


def test_a_context_that_nothing_is_left_of_has_no_answer():
    example = {"id": "a", "text": "?", "text_pair": "\n \t", "span": None}
    objective = QuestionAnswering(stride=4, question_length=4)
    _, batch = rows_of(objective, [example], 20, ByteTokenizer())
    for task in ("squad", "squad2"):
        (answer,) = TASKS[task]().postprocess(sure(batch), [example])
        assert answer == Answer(Found("", "", 0.0, ()), 1.0)


def test_texts_are_told_apart():
    assert distinct([], "abab", 3) == []
    spans = [Span(2.0, 2, 3), Span(1.0, 0, 1), Span(0.0, 1, 2), Span(0.0, 3, 4), Span(-1.0, 0, 4)]
    assert distinct(spans[::-1], "abab", 3) == [("a", 2.0), ("b", 0.0), ("abab", -1.0)]
    assert distinct(spans, "abab", 1) == [("a", 2.0)]


GOLDS = [("Rome", "the Rome"), (), ("光荣",), ()]


def found(*texts, odds=(0.0,) * 4):
    return [
        Answer(Found(text, text or "x", null), 0.5) for text, null in zip(texts, odds, strict=True)
    ]


def test_scores_are_of_the_texts_and_of_the_best_threshold():
    task = TASKS["squad2"]()
    answers = found("rome.", "no", "", "", odds=(-2.0, 1.0, -1.0, 3.0))
    answers[2] = Answer(answers[2].value._replace(candidate="光荣"), 0.5)
    scores = task.metrics(answers, GOLDS)
    assert scores["exact_match"] == scores["f1"] == 0.5
    assert scores["f1_has_answer"] == 0.5 and scores["f1_no_answer"] == 0.5
    # To withhold what is above −1 gives the third question its candidate, and the second none.
    assert scores["best_f1"] == scores["best_exact_match"] == 1.0
    assert scores["best_threshold"] == -1.0
    low_high = task.intervals(answers, GOLDS)
    assert low_high["f1"][0] <= 0.5 <= low_high["f1"][1]
    assert [task.mistake(*pair) for pair in zip(answers, GOLDS, strict=True)] == [0, 1, 1, 0]
    plain = TASKS["squad"]().metrics(found("Rome", "光荣", odds=(0.0, 0.0)), GOLDS[::2])
    assert plain == {"exact_match": 1.0, "f1": 1.0}
    assert TASKS["cmrc2018"]().metrics(found("光", odds=(0.0,)), [("光荣",)])["f1"] == 2 / 3


@pytest.mark.parametrize("name", ["question_answering", "squad", "squad2", "cmrc2018"])
def test_every_task_scores_its_own_golds_perfectly(name):
    task = TASKS[name]()
    golds = GOLDS if task.unanswerable else GOLDS[::2]
    perfect = task.perfect(golds)
    scores = task.metrics(perfect, golds)
    threshold = scores.pop("best_threshold", None)
    assert set(scores.values()) == {1.0} and (threshold is not None) == task.unanswerable
    assert set(task.intervals(perfect, golds).values()) == {(1.0, 1.0)}
    assert {task.mistake(*pair) for pair in zip(perfect, golds, strict=True)} == {0.0}
    assert [task.show(gold) for gold in golds] == [list(gold) for gold in golds]
    assert task.defaults["eval"] == {"metric": "f1", "mode": "max"}


def test_files_are_those_that_others_score():
    examples = [{"id": name} for name in "abcd"]
    answers = found("Rome", "", "光荣", "x", odds=(-1.0, 2.0, 0.25, 0.0))
    answers[0] = Answer(Found("Rome", "Rome", -1.0, (("Rome", 0.75), ("it", 0.125))), 0.75)
    files = {n: json.loads(t) for n, t in TASKS["squad2"]().files(answers, examples).items()}
    assert files["submission.json"] == {"a": "Rome", "b": "", "c": "光荣", "d": "x"}
    assert files["null_odds.json"] == {"a": -1.0, "b": 2.0, "c": 0.25, "d": 0.0}
    best = [{"text": "Rome", "probability": 0.75}, {"text": "it", "probability": 0.125}]
    assert files["n_best.json"]["a"] == best
    assert set(TASKS["squad"]().files(answers, examples)) == {"submission.json", "n_best.json"}


# --- refusals


def no_specials():
    tokenizer = FakeTokenizer()
    tokenizer.template = Template.of((), (), ())
    return tokenizer


@pytest.mark.parametrize(
    "fields,length,tokenizer,match",
    [
        ({}, 190, FAKE, r"stride=128 leaves gaps.*question_length=64.*length=190 holds 123 tokens"),
        ({}, 20, FAKE, "holds 0 tokens"),
        ({"stride": 1}, 384, no_specials(), "no special token before or behind a pair"),
    ],
)
def test_rows_that_would_lose_something_are_refused(fields, length, tokenizer, match):
    with pytest.raises(ConfigError, match=match):
        rows_of(QuestionAnswering(**fields), EXAMPLES, length, tokenizer)


def test_without_a_first_special_the_last_says_that_there_is_no_answer():
    objective = QuestionAnswering(stride=4, question_length=4)
    _, batch = rows_of(objective, EXAMPLES[2:3], 20, ByT5Tokenizer())
    assert batch["none"].tolist() == [(batch["segment_ids"][0] > 0).sum() - 1]
    assert batch["labels"].tolist() == [[batch["none"][0]] * 2]


@pytest.mark.parametrize(
    "change,match",
    [
        ({"span": None}, "example a: 'span' is NoneType"),
        ({"text_pair": None}, "'text_pair' is NoneType"),
        ({"text_pair": "a  b", "span": (1, 3)}, "example a: the tokenizer leaves nothing of"),
    ],
)
def test_what_cannot_be_trained_on_is_refused(change, match):
    objective = QuestionAnswering(stride=4, question_length=4)
    with pytest.raises(DataError, match=match):
        objective.plan([EXAMPLES[0] | change], 20, ByteTokenizer(), seed=0, shuffle=True)


# --- real data


@pytest.mark.parametrize(
    "name,every,task,vocabulary,lost",
    [
        ("squad/dev-v1.1", 3, "squad", "bert-base-uncased", (41, 5973)),
        ("squad/dev-v2.0", 3, "squad2", "bert-base-uncased", (15, 5358)),
        ("cmrc2018/dev", 2, "cmrc2018", "bert-base-chinese", (1, 1999)),
    ],
)
@pytest.mark.filterwarnings("ignore:.*7 of 9,657 answers")
def test_right_labels_give_the_right_answers_of_real_sets(
    name, every, task, vocabulary, lost, shared
):
    """What is lost begins or ends within a piece: `Japan` of `Japanese`, `4个` of `34个`."""
    tokenizer = load_hugging_face(shared(f"weights/vocab/{vocabulary}"))
    data = DataConfig(path=str(shared(f"data/{name}.json.gz")), split="whole")
    task = TASKS[task](max_answer_tokens=384, n_best=1)
    golds = []  # an example a different answer
    for asked in task.examples(data, "test")[::every]:
        for text in dict.fromkeys(asked["answers"]):
            if place := locate(asked["text_pair"], text, asked["span"][0]):
                span = (place.begin, place.end)
                golds.append(asked | {"answers": (text,), "span": span})
        if not asked["answers"]:
            golds.append(asked)
    _, batch = rows_of(QuestionAnswering(), golds, 384, tokenizer)
    answers = task.postprocess(sure(batch), golds)
    right = span_values([a.value.text for a in answers], task.golds(golds), style=task.style)
    assert (np.count_nonzero(right["exact_match"] == 0), len(golds)) == lost
    assert right["f1"].mean() > 0.99
    for gold, answer in zip(golds, answers, strict=True):  # nothing of it is missing
        assert (gold["answers"] or ("",))[0].strip() in answer.value.text
