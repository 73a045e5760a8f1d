"""Scores of texts: the libraries' own numbers, several references, and any script."""

from collections import Counter

import numpy as np
import pytest
import sacrebleu
from measures import interval_by, intervals_by, scores_by
from rouge_score.rouge_scorer import RougeScorer

from flaxlm.errors import ConfigError, DataError
from flaxlm.metrics.answers import span_values
from flaxlm.metrics.measure import mean_measure
from flaxlm.metrics.texts import (
    CORPUS_SCORES,
    TEXT_SCORES,
    check_language,
    exact_match,
    text_measures,
    token_f1,
    words,
)

ENGLISH = "the runner was running to his houses while dogs barked loudly at 3 Cats it's".split()
CHINESE = "他在北京大学读书，今天去看电影。"


def english(n: int, seed: int = 0, references: int = 2):
    """Return predictions and one to `references` references for each, half alike."""
    rng = np.random.default_rng(seed)
    texts, groups = [], []
    for _ in range(n):
        base = rng.choice(ENGLISH, int(rng.integers(3, 12)))

        def near(base=base):
            swap = rng.random(len(base)) < 0.3
            return " ".join(np.where(swap, rng.choice(ENGLISH, len(base)), base).tolist()) + "."

        texts.append(near())
        groups.append([near() for _ in range(int(rng.integers(1, references + 1)))])
    return texts, groups


@pytest.mark.parametrize("kind", ["rouge_1", "rouge_2", "rouge_l"])
def test_rouge_equals_rouge_score_with_its_stemmer_and_takes_the_best_reference(kind):
    texts, groups = english(120)
    name = {"rouge_1": "rouge1", "rouge_2": "rouge2", "rouge_l": "rougeL"}[kind]
    scorer = RougeScorer([name], use_stemmer=True)
    expected = [
        max(scorer.score(reference, text)[name].fmeasure for reference in group)
        for text, group in zip(texts, groups, strict=True)
    ]
    ours = TEXT_SCORES[kind](texts, groups)
    assert ours.tolist() == expected and 0 < np.mean(expected) < 1
    # Stemming counts: "runs" and "running" are one word.
    assert TEXT_SCORES["rouge_1"](["runs"], ["running"])[0] == 1.0


def test_rouge_n_equals_counting_n_grams():
    def grams(text, n):
        tokens = text.split()
        return Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))

    # Words of three letters and less are not stemmed.
    for a, b in [("a b c a b", "a b a b c"), ("one two six", "two six ten"), ("x", "x"), ("", "a")]:
        for n, score in ((1, TEXT_SCORES["rouge_1"]), (2, TEXT_SCORES["rouge_2"])):
            said, real = grams(a, n), grams(b, n)
            shared, size = sum((said & real).values()), sum((said + real).values())
            expected = 2 * shared / size if size else 0.0
            assert score([a], [b])[0] == pytest.approx(expected)


def test_rouge_reads_scripts_that_rouge_score_drops():
    lost = RougeScorer(["rouge1"], use_stemmer=True).score(CHINESE, CHINESE)["rouge1"]
    assert lost.fmeasure == 0.0
    for language in ("zh", ""):
        for score in (TEXT_SCORES["rouge_1"], TEXT_SCORES["rouge_2"], TEXT_SCORES["rouge_l"]):
            assert score([CHINESE], [CHINESE], language)[0] == 1.0
            assert score(["完全不同"], [CHINESE], language)[0] == 0.0


def test_chinese_rouge_is_that_of_its_characters_as_words():
    # Each character is spelt as a word of its own that no stemmer touches.
    rng = np.random.default_rng(0)
    characters = "他在北京大学读书今天去看电影"
    names = {c: f"q{n}" for n, c in enumerate(characters)}
    for _ in range(50):
        a, b = ("".join(rng.choice(list(characters), rng.integers(1, 15))) for _ in range(2))
        spelt = [" ".join(names[c] for c in text) for text in (a, b)]
        for score in (TEXT_SCORES["rouge_1"], TEXT_SCORES["rouge_2"], TEXT_SCORES["rouge_l"]):
            assert score([a + "。"], [b], "zh") == score([spelt[0]], [spelt[1]])


def test_words_of_any_script():
    assert words("BERT在2018年发布，Google。") == ["bert", "在", "2018", "年", "发", "布", "google"]
    assert words("L'été, déjà-vu!") == ["l", "été", "déjà", "vu"]
    assert words("e\u0301te\u0301") == words("été")  # either way to write an accent
    assert words("Привет, мир") == ["привет", "мир"]
    assert words("हिन्दी में") == ["हिन्दी", "में"]  # vowel signs are marks, and parts of a word
    assert words("กี่คน") == ["กี่", "ค", "น"]  # Thai has no spaces; a mark stays on its consonant
    assert words("한국어 문장") == ["한국어", "문장"]
    assert words("カタカナ") == list("カタカナ")
    assert words(" …!\u0301 ") == []


def test_english_refuses_references_that_it_would_lose():
    with pytest.raises(DataError, match=r"language='en' .* lose 100 % .* 'zh', or to ''"):
        TEXT_SCORES["rouge_l"]([CHINESE], [CHINESE])
    with pytest.raises(DataError, match="lose"):
        check_language([["Привет", "мир"], "ok"], "en")
    check_language([CHINESE], "zh")
    check_language(["déjà vu", ["naïve", "…"], "", "123"], "en")
    with pytest.raises(ConfigError, match="en, zh"):
        check_language(["a"], "cn")


def bleu(texts, groups, language: str = "") -> float:
    return scores_by(text_measures, texts, groups, ["bleu"], language)["bleu"]


def test_bleu_and_chrf_equal_sacrebleu_with_any_number_of_references():
    texts, groups = english(80, references=3)
    # sacrebleu wants stream after stream, and None where a text has no more references.
    most = max(map(len, groups))
    streams = [[g[k] if k < len(g) else None for g in groups] for k in range(most)]
    assert bleu(texts, groups) == sacrebleu.corpus_bleu(texts, streams).score
    chrf = scores_by(text_measures, texts, groups, ["chrf"])["chrf"]
    assert chrf == sacrebleu.corpus_chrf(texts, streams).score
    # All references count for BLEU: with more of them it can only find more.
    assert bleu(texts, groups) > bleu(texts, [g[:1] for g in groups])
    first = [g[0] for g in groups]
    assert bleu(texts, first) == bleu(texts, [[one] for one in first])
    scores = scores_by(text_measures, texts, groups, ("chrf", "bleu"))
    assert list(scores.values()) == [chrf, bleu(texts, groups)]


def test_chinese_bleu_has_characters_for_words():
    said, real = ["他在北京读书。"], ["他在北京大学读书。"]
    assert bleu(said, real) == 0.0
    spelt = [" ".join(text[0]) for text in (said, real)]
    assert bleu(said, real, "zh") == pytest.approx(bleu(spelt[:1], spelt[1:]))


@pytest.mark.parametrize("name", ["bleu", "chrf"])
def test_corpus_intervals_agree_with_scoring_resampled_texts(name):
    texts, groups = english(60, references=2)
    low, high = intervals_by(text_measures, texts, groups, [name])[name]
    rng = np.random.default_rng(3)

    def score(texts, groups):
        return scores_by(text_measures, texts, groups, [name])[name]

    plain = []
    for _ in range(150):
        rows = rng.integers(0, 60, 60)
        plain.append(score([texts[r] for r in rows], [groups[r] for r in rows]))
    expected = np.quantile(plain, [0.025, 0.975])
    assert (low, high) == pytest.approx(expected, abs=0.25 * (expected[1] - expected[0]))
    assert low < score(texts, groups) < high
    # All texts alike: every resample is the split.
    same = score(texts[:1], groups[:1])
    interval = intervals_by(text_measures, texts[:1] * 9, groups[:1] * 9, [name])[name]
    assert interval == (pytest.approx(same), pytest.approx(same))


def test_token_f1_of_english_is_squads():
    texts, groups = english(100, references=3)
    squad = span_values(texts, groups)
    assert token_f1(texts, groups).tolist() == squad["f1"].tolist()
    assert token_f1(["The cat!"], ["a cat"])[0] == 1.0
    assert token_f1(["在北京"], ["北京，在"], "zh")[0] == 1.0
    assert token_f1(["在北京"], ["北京市"], "")[0] == pytest.approx(2 / 3)
    assert token_f1(["der Hund"], ["Der Hund."], "")[0] == 1.0


def test_exact_match_takes_any_reference():
    found = exact_match(["a  b", "你 好", "c"], [["x", "a b"], "你 好", ["b"]])
    assert found.tolist() == [1.0, 1.0, 0.0]


def test_text_scores_are_means_and_their_intervals_hold_them():
    texts, groups = english(60)
    names = [*TEXT_SCORES, *CORPUS_SCORES]
    scores = scores_by(text_measures, texts, groups, names)
    intervals = intervals_by(text_measures, texts, groups, names)
    assert list(scores) == list(intervals) == names
    for name, score in TEXT_SCORES.items():
        assert scores[name] == pytest.approx(score(texts, groups).mean(), rel=1e-12)
        assert intervals[name] == interval_by(mean_measure, score(texts, groups))
    assert all(low <= scores[name] <= high for name, (low, high) in intervals.items())


def test_text_scores_name_what_they_cannot_use():
    with pytest.raises(ConfigError, match=r"score='rouge_3' .* rouge_1, rouge_2, rouge_l"):
        scores_by(text_measures, ["a"], ["a"], ["bleu", "rouge_3"])
    with pytest.raises(DataError, match="example 2 has no reference"):
        scores_by(text_measures, ["a", "b"], ["a", []], ["bleu"])
    with pytest.raises(DataError, match="the prediction of example 1 is None, not a text"):
        scores_by(text_measures, [None], ["a"], ["chrf"])
    with pytest.raises(DataError, match="the reference of example 2 is 5, not a text"):
        TEXT_SCORES["rouge_1"](["a", "b"], ["a", ["b", 5]])
    with pytest.raises(DataError, match="2 predictions for 1 examples"):
        bleu(["a", "b"], ["a"])
