"""Exact match and F1 of answers, as the evaluations of SQuAD and of CMRC 2018 define them.

`squad` (Rajpurkar et al., 2016 and 2018): lower case, without ASCII punctuation and the articles
a, an, the; F1 is over the words that two answers share. `cmrc` (Cui et al., 2019): lower case,
without the punctuation it lists; an ideograph is a token by itself and other text is split into
words; F1 is over the longest run of tokens that two answers share. (The paper's evaluation calls it
a longest common sequence, and looks for an unbroken one.)

An answer that nothing is left of is "no answer". Of several gold answers the best counts.
"""

import difflib
import functools
import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from flaxlm.errors import DataError, choose
from flaxlm.metrics.measure import Measure, check_lengths, mean_measure

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_CMRC_PUNCTUATION = str.maketrans("", "", "-:_*^/\\~`+=，。：？！“”；’《》·、「」（）－～『』")
_CMRC_IDEOGRAPH = re.compile("([\u4e00-\u9fa5])")


def normal_squad(text: str) -> str:
    """Return the text as SQuAD compares it."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def normal_cmrc(text: str) -> str:
    """Return the text as CMRC 2018 compares it."""
    normal = text.lower().strip().translate(_CMRC_PUNCTUATION)
    return normal if normal.strip() else ""


def _f1(shared: int, predicted: Sequence[str], gold: Sequence[str]) -> float:
    return 2.0 * shared / (len(predicted) + len(gold)) if predicted or gold else 1.0


def overlap_f1(predicted: Sequence[str], gold: Sequence[str]) -> float:
    """Return the F1 of the tokens that two lists share, order apart; 1 where both are empty."""
    return _f1((Counter(predicted) & Counter(gold)).total(), predicted, gold)


def _run_f1(predicted: Sequence[str], gold: Sequence[str]) -> float:
    matcher = difflib.SequenceMatcher(None, predicted, gold, autojunk=False)
    return _f1(matcher.find_longest_match().size, predicted, gold)


@functools.cache
def _word_tokenizer():
    # nltk comes with rouge-score. Its sentence splitter, which the paper's evaluation runs first,
    # wants data from the net; on an answer of a few words there is nothing for it to split.
    from nltk.tokenize.destructive import NLTKWordTokenizer

    return NLTKWordTokenizer()


def _cmrc_tokens(normal: str) -> list[str]:
    tokens = []
    for part in _CMRC_IDEOGRAPH.split(normal):
        if _CMRC_IDEOGRAPH.match(part):
            tokens.append(part)
        elif part.strip():
            tokens += _word_tokenizer().tokenize(part)
    return tokens


class Style(NamedTuple):
    """How answers are compared: their normal form, its tokens, and the F1 of two such lists."""

    normal: Callable[[str], str]
    tokens: Callable[[str], list[str]]
    f1: Callable[[Sequence[str], Sequence[str]], float]


STYLES = {
    "squad": Style(normal_squad, str.split, overlap_f1),
    "cmrc": Style(normal_cmrc, _cmrc_tokens, _run_f1),
}


Texts = Sequence[str | None]
Golds = Sequence[Sequence[str]]


def _answers(golds: Golds) -> list[list[str]]:
    """Return each question's gold answers; DataError where they are no list of texts."""
    groups = [[gold] if isinstance(gold, str) else list(gold) for gold in golds]
    for n, answers in enumerate(groups):
        for answer in answers:
            if not isinstance(answer, str):
                raise DataError(f"question {n + 1} has the gold answer {answer!r}, not a text")
    return groups


def has_answer(golds: Golds) -> np.ndarray:
    """Return bool [N], whether a question has an answer: some gold text that is not empty."""
    return np.array([any(answers) for answers in _answers(golds)], bool)


def span_values(predictions: Texts, golds: Golds, *, style: str = "squad") -> dict[str, np.ndarray]:
    """Return `exact_match` and `f1`, each float64 [N] from 0 to 1, of every question.

    Args:
      predictions: a text for each question; '' says that there is no answer, and None that the
        system did not say anything, which scores 0 whatever the gold answer.
      golds: the right answers of each question (a text, or a list); none, or only empty ones,
        where there is no answer.
      style: a key of `STYLES`.
    """
    normal, tokens, f1 = STYLES[choose("style", style, STYLES)]
    check_lengths(predictions, golds)
    values = {"exact_match": np.zeros(len(golds)), "f1": np.zeros(len(golds))}
    for n, (text, answers) in enumerate(zip(predictions, _answers(golds), strict=True)):
        if text is None:
            continue
        if not isinstance(text, str):
            raise DataError(f"the prediction of question {n + 1} is {text!r}, not a text")
        predicted = normal(text)
        # A gold answer that nothing is left of does not count beside others, as in evaluate-v2.0.
        accepted = {a for a in map(normal, answers) if a} or {""}
        if predicted in accepted:
            values["exact_match"][n] = 1.0
        said = tokens(predicted)
        values["f1"][n] = max(f1(said, tokens(answer)) for answer in accepted)
    return values


def span_measures(
    predictions: Texts,
    golds: Golds,
    *,
    style: str = "squad",
    names: Sequence[str] = ("exact_match", "f1"),
) -> list[Measure]:
    """Return the measures `exact_match` and `f1`, or one of them; see `span_values`.

    Where some questions have an answer and some have none, also each over either kind,
    `…_has_answer` and `…_no_answer`.
    """
    values, answerable = span_values(predictions, golds, style=style), has_answer(golds)
    groups = {"": np.ones(len(answerable), bool)}
    if 0 < answerable.sum() < len(answerable):
        groups |= {"_has_answer": answerable, "_no_answer": ~answerable}
    return [
        mean_measure(name + suffix, values[name][rows])
        for suffix, rows in groups.items()
        for name in names
    ]


def best_threshold(
    values: Sequence[float], answerable: Sequence[bool], null_scores: Sequence[float]
) -> tuple[float, float]:
    """Return the best mean value, and the null score above which to withhold the answer for it.

    As evaluate-v2.0 searches, save that equal null scores are withheld or given together, as they
    will be when the threshold is used, and that all answers can be withheld where null scores are
    negative too. A withheld answer is worth 1 where there is none and else 0; the threshold is the
    lowest that gives the mean, 0.0 where all are withheld and all are above 0.

    `null_scores` say, on any scale, how sure the system is that there is no answer.
    """
    check_lengths(values, answerable)
    check_lengths(null_scores, answerable)
    answered, scores = np.asarray(values, np.float64), np.asarray(null_scores, np.float64)
    withheld = 1.0 - np.asarray(answerable, np.float64)
    if not np.isfinite(scores).all():
        raise DataError(f"question {int(np.argmin(np.isfinite(scores))) + 1}: no finite null score")
    distinct, place = np.unique(scores, return_inverse=True)
    gains = np.bincount(place, answered - withheld, len(distinct))
    # Entry k gives the answers of the k lowest null scores and withholds the others.
    totals = withheld.sum() + np.concatenate([[0.0], np.cumsum(gains)])
    best = int(np.argmax(totals))
    nothing = 0.0 if distinct[0] > 0 else np.nextafter(distinct[0], -np.inf)
    threshold = distinct[best - 1] if best else nothing
    return float(totals[best] / len(answered)), float(threshold)
