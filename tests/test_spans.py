"""SQuAD and CMRC 2018 scores against slow scorers, published predictions, and by hand."""

import gzip
import json
import string
from fractions import Fraction

import nltk
import numpy as np
import pytest
from measures import intervals_by, scores_by

from flaxlm.errors import ConfigError, DataError
from flaxlm.metrics.answers import (
    best_threshold,
    has_answer,
    normal_cmrc,
    normal_squad,
    span_measures,
    span_values,
)

FUZZED = 10_000
# What normalisation could get wrong: articles in and beside words, ASCII and other punctuation,
# odd spaces, letters that change their length in lower case, marks, digits of other scripts.
PIECES = (
    ["the", "The", "THE", "a", "A", "an", "An", "theatre", "banana", "cat", "Cat", "dog", "x"]
    + ["1", "２", "²", "é", "É", "e\u0301", "the\u0301", "ß", "İ", "中文", "答案", "ﬁ"]
    + list(".,!?-_'\"$()[]%&") + ["—", "“", "”", "。", "，", "…", "€"]
    + [" "] * 12 + ["  ", "\t", "\n", "\u00a0", "\u3000", "\u200b", ""]
)  # fmt: skip


def fuzzed_text(rng, most: int = 14) -> str:
    glue = " " if rng.random() < 0.5 else ""
    return glue.join(rng.choice(PIECES, int(rng.integers(0, most))).tolist())


def fuzzed_questions(n: int = FUZZED, seed: int = 0):
    """Return predictions and gold lists; a third of the predictions are variants of a gold."""
    rng = np.random.default_rng(seed)
    predictions, golds = [], []
    for _ in range(n):
        answers = [fuzzed_text(rng) for _ in range(int(rng.integers(0, 4)))]
        kind = rng.random()
        if kind < 0.35 and answers:
            text = answers[int(rng.integers(0, len(answers)))]
            text = rng.choice([text.upper(), f"the {text}.", text[2:], text + " x", text])
        else:
            text = None if kind > 0.97 else "" if kind > 0.9 else fuzzed_text(rng)
        predictions.append(None if text is None else str(text))
        golds.append(answers)
    return predictions, golds


def slow_normal(text: str) -> list[str]:
    """SQuAD's normal form, character by character and without a regular expression."""
    kept = [c for c in text.lower() if c not in string.punctuation]
    parts, word = [], ""
    for c in [*kept, " "]:
        # A word boundary lies between what is a letter, digit or underscore and what is not.
        if c.isalnum():
            word += c
            continue
        parts.append(" " if word in ("a", "an", "the") else word)
        parts.append(c)
        word = ""
    return "".join(parts).split()


def slow_f1(predicted: list[str], gold: list[str]) -> Fraction:
    if not predicted or not gold:
        return Fraction(int(predicted == gold))
    left, shared = list(gold), 0
    for token in predicted:
        if token in left:
            left.remove(token)
            shared += 1
    if not shared:
        return Fraction(0)
    precision, recall = Fraction(shared, len(predicted)), Fraction(shared, len(gold))
    return 2 * precision * recall / (precision + recall)


def slow_squad(text: str | None, answers: list[str]) -> tuple[float, float]:
    if text is None:
        return 0.0, 0.0
    # Only answers that something is left of, or else the empty answer.
    accepted = [a for a in answers if slow_normal(a)] or [""]
    predicted = slow_normal(text)
    exact = any(slow_normal(a) == predicted for a in accepted)
    return float(exact), float(max(slow_f1(predicted, slow_normal(a)) for a in accepted))


def test_squad_scores_equal_a_slow_scorer_on_fuzzed_answers():
    predictions, golds = fuzzed_questions()
    ours = span_values(predictions, golds)
    theirs = [slow_squad(p, g) for p, g in zip(predictions, golds, strict=True)]
    pairs = zip(ours["exact_match"], ours["f1"], strict=True)
    mismatches = [
        (predictions[n], golds[n], pair, theirs[n])
        for n, pair in enumerate(pairs)
        if pair != theirs[n]
    ]
    assert len(theirs) == FUZZED and mismatches == []
    # The questions are a test: right, wrong, in between, and without an answer.
    exact, f1 = np.array(theirs).T
    assert 0.1 < exact.mean() < 0.9 and ((f1 > 0) & (f1 < 1)).mean() > 0.1
    assert 0.1 < np.mean([not any(map(slow_normal, g)) for g in golds]) < 0.9


def test_squad_normal_form_by_hand():
    assert normal_squad("The  Cat's (a) theatre!") == "cats theatre"
    assert normal_squad("U.S.—the “best”") == "us— “best”"
    assert normal_squad("A") == normal_squad(" !? ") == ""
    assert normal_squad("An\u00a0apple\tan") == "apple"


def squad(shared, version: str, system: str):
    """Return the predictions, gold answers and what is answerable, question by question."""
    with gzip.open(shared(f"data/squad/dev-{version}.json.gz"), "rt", encoding="utf-8") as f:
        articles = json.load(f)["data"]
    with gzip.open(shared(f"data/squad/predictions/{version}-{system}.json.gz"), "rt") as f:
        said = json.load(f)
    questions = [q for a in articles for p in a["paragraphs"] for q in p["qas"]]
    golds = [[answer["text"] for answer in q["answers"]] for q in questions]
    return [said.get(q["id"]) for q in questions], golds


@pytest.mark.parametrize(
    ("version", "system", "exact_match", "f1"),
    [
        ("v1.1", "bert-ensemble", 86.206, 92.196),
        ("v2.0", "bert-single", 78.742, 81.775),
        ("v1.1", "logreg", 40.142, 50.982),
    ],
)
def test_published_predictions_score_what_was_published(shared, version, system, exact_match, f1):
    predictions, golds = squad(shared, version, system)
    scores = scores_by(span_measures, predictions, golds)
    assert round(100 * scores["exact_match"], 3) == exact_match
    assert round(100 * scores["f1"], 3) == f1
    intervals = intervals_by(span_measures, predictions, golds)
    assert intervals.keys() == scores.keys()
    # A thousand resamples of 10,570 questions: half a percentage point either side, or so.
    low, high = intervals["f1"]
    assert low < scores["f1"] < high < low + 0.02
    if version == "v2.0":
        answerable = has_answer(golds)
        assert answerable.sum() == 5928 and (~answerable).sum() == 5945
        parts = scores["f1_has_answer"] * 5928 + scores["f1_no_answer"] * 5945
        assert parts / 11873 == pytest.approx(scores["f1"])
        assert scores["f1_no_answer"] == scores["exact_match_no_answer"]
    else:
        assert scores.keys() == {"exact_match", "f1"}


def test_no_answer_is_right_where_there_is_none():
    golds = [[], [""], [], ["cat"], ["the"]]
    values = span_values(["", "", "cat", "", "a"], golds)
    assert values["exact_match"].tolist() == values["f1"].tolist() == [1, 1, 0, 0, 1]
    # A question that was not answered at all is wrong either way.
    assert scores_by(span_measures, [None, None], [[], ["x"]])["f1"] == 0.0
    assert has_answer(golds).tolist() == [False, False, False, True, True]
    scores = scores_by(span_measures, ["", "x"], [[], ["cat x"]])
    assert scores["f1_no_answer"] == 1.0 and scores["f1_has_answer"] == pytest.approx(2 / 3)


def test_a_gold_answer_may_stand_alone_without_a_list():
    assert scores_by(span_measures, ["Cat"], ["the cat"]) == {"exact_match": 1.0, "f1": 1.0}


def slow_threshold(values, answerable, null_scores) -> float:
    """The best mean over every way to draw the line."""
    best = 0.0
    for line in [-np.inf, *null_scores]:
        kept = [
            float(not has) if null > line else value
            for value, has, null in zip(values, answerable, null_scores, strict=True)
        ]
        best = max(best, float(np.mean(kept)))
    return best


@pytest.mark.parametrize("ties", [False, True])
def test_best_threshold_is_the_best_there_is_and_gives_what_it_promises(ties):
    for seed in range(60):
        rng = np.random.default_rng(seed)
        n = int(rng.integers(1, 40))
        golds = [["cat dog"] if has else [] for has in rng.random(n) < rng.random()]
        said = rng.choice(["cat dog", "cat", "ox", ""], n).tolist()
        nulls = rng.integers(-3, 4, n) / 2 if ties else rng.normal(size=n)
        answerable = has_answer(golds)
        for name, values in span_values(said, golds).items():
            best, threshold = best_threshold(values, answerable, nulls)
            assert best == pytest.approx(slow_threshold(values, answerable, nulls))
            pairs = zip(said, nulls, strict=True)
            withheld = ["" if null > threshold else text for text, null in pairs]
            after = scores_by(span_measures, withheld, golds)
            assert after[name] == pytest.approx(best)


def test_best_threshold_equals_the_published_search_on_real_predictions(shared):
    predictions, golds = squad(shared, "v2.0", "bert-single")
    answerable, rng = has_answer(golds), np.random.default_rng(0)
    # Null scores as of a system that knows something: distinct, so that both searches agree.
    nulls = np.clip(rng.normal(0.5, 0.15, len(golds)) - 0.1 * answerable, 0.001, None)
    values = span_values(predictions, golds)["f1"]
    # evaluate-v2.0: begin with all withheld, give answers from the surest, keep the best so far.
    total = best = float((~answerable).sum())
    line = 0.0
    for n in np.argsort(nulls):
        total += values[n] if answerable[n] else -1.0 if predictions[n] else 0.0
        if total > best:
            best, line = total, nulls[n]
    found = best_threshold(values, answerable, nulls)
    assert found == (pytest.approx(best / len(golds)), pytest.approx(line))


def test_best_threshold_refuses_null_scores_that_cannot_be_ordered():
    with pytest.raises(DataError, match="question 2: no finite null score"):
        best_threshold([1.0, 0.0], [True, False], [0.1, np.nan])
    with pytest.raises(DataError, match="1 predictions for 2 examples"):
        best_threshold([1.0], [True, False], [0.1, 0.2])


CMRC_SIGNS = set("-:_*^/\\~`+=，。：？！“”；’《》·、「」（）－～『』")


def slow_cmrc(text: str, answers: list[str]) -> tuple[float, float]:
    """CMRC 2018's scores, by a table of all common runs of tokens."""

    def kept(raw):
        return "".join(c for c in raw.lower().strip() if c not in CMRC_SIGNS)

    def tokens(raw):
        found, run = [], ""
        for c in kept(raw):
            if "\u4e00" <= c <= "\u9fa5":
                found += [*nltk.word_tokenize(run, preserve_line=True), c]
                run = ""
            else:
                run += c
        return found + nltk.word_tokenize(run, preserve_line=True)

    exact, best = 0.0, Fraction(0)
    for answer in answers:
        exact = max(exact, float(kept(text) == kept(answer)))
        a, b = tokens(text), tokens(answer)
        runs = np.zeros((len(a) + 1, len(b) + 1), int)
        for i, x in enumerate(a):
            for j, y in enumerate(b):
                runs[i + 1, j + 1] = runs[i, j] + 1 if x == y else 0
        if runs.any():
            best = max(best, Fraction(2 * int(runs.max()), len(a) + len(b)))
    return exact, float(best)


def test_cmrc_scores_equal_a_slow_scorer_on_fuzzed_answers():
    rng = np.random.default_rng(1)
    pieces = [
        *"北京是中国的首都，。：《》“”-—…",
        "BERT",
        "can't",
        "cannot",
        "2018",
        "2.5%",
        " ",
        "a",
    ]
    predictions, golds = [], []
    for _ in range(2000):
        answers = ["中", *rng.choice(pieces, int(rng.integers(1, 9))).tolist()]
        golds.append(["".join(answers), "国" + "".join(rng.choice(pieces, 3))])
        low, high = sorted(rng.integers(0, len(answers) + 1, 2).tolist())
        low, high = (low, high) if rng.random() < 0.7 else (0, len(answers))
        predictions.append("".join(answers[low:high]) + rng.choice(["", "。", " 年", "“是"]))
    ours = span_values(predictions, golds, style="cmrc")
    theirs = [slow_cmrc(p, g) for p, g in zip(predictions, golds, strict=True)]
    pairs = list(zip(ours["exact_match"], ours["f1"], strict=True))
    assert [n for n in range(2000) if pairs[n] != theirs[n]] == []
    exact, f1 = np.array(theirs).T
    assert 0.1 < exact.mean() < 0.9 and ((f1 > 0) & (f1 < 1)).mean() > 0.3


def test_cmrc_scores_by_hand():
    def score(text, *answers):
        return scores_by(span_measures, [text], [answers], style="cmrc")

    assert score("《北京》。", "北京") == {"exact_match": 1.0, "f1": 1.0}
    # 在北京 and 北京市: a run of two of three tokens each.
    assert score("在北京", "北京市")["f1"] == pytest.approx(2 / 3)
    # 北 and 京 are shared, and no run of both is.
    assert score("北大京", "北京")["f1"] == pytest.approx(2 / 5)
    assert score("2018年", "2018 年") == {"exact_match": 0.0, "f1": 1.0}
    assert score("google公司", "Google")["f1"] == pytest.approx(2 / 4)
    assert score("上海", "北京", "上海市")["f1"] == pytest.approx(4 / 5)
    assert score("是" * 150 + "的" * 150, "国" * 100 + "的" * 200)["f1"] == pytest.approx(1 / 2)
    assert normal_cmrc("，。 、") == "" and score("，。", "")["f1"] == 1.0
    # SQuAD's words do not fall apart into characters.
    assert scores_by(span_measures, ["在北京"], [["北京市"]])["f1"] == 0.0


def test_cmrc_answers_score_1_against_themselves(shared):
    with gzip.open(shared("data/cmrc2018/dev.json.gz"), "rt", encoding="utf-8") as f:
        articles = json.load(f)["data"]
    questions = [q for a in articles for p in a["paragraphs"] for q in p["qas"]]
    golds = [[a["text"] for a in q["answers"]] for q in questions]
    assert len(golds) == 3219
    first = [answers[-1] for answers in golds]
    scores = scores_by(span_measures, first, golds, style="cmrc")
    assert scores == {"exact_match": 1.0, "f1": 1.0}
    cut = [text[: max(1, len(text) // 2)] for text in first[:200]]
    ours = span_values(cut, golds[:200], style="cmrc")
    theirs = [slow_cmrc(p, g) for p, g in zip(cut, golds, strict=False)]
    assert list(zip(ours["exact_match"], ours["f1"], strict=True)) == theirs


def test_what_is_no_answer_is_refused_by_name():
    with pytest.raises(DataError, match="the prediction of question 2 is 7, not a text"):
        scores_by(span_measures, ["a", 7], [["a"], ["b"]])
    with pytest.raises(DataError, match="question 1 has the gold answer None"):
        scores_by(span_measures, ["a"], [[None]])
    with pytest.raises(ConfigError, match="squad, cmrc"):
        scores_by(span_measures, ["a"], [["a"]], style="quad")
