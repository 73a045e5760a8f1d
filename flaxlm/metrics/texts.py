"""Scores of generated texts against one reference or several each.

ROUGE by rouge-score, BLEU and chrF by sacrebleu. `language` says how a text falls into words:

- `en`: runs of ASCII letters and digits, Porter-stemmed for ROUGE, as papers report for English.
  Every other character is lost, so that it is refused where most letters are others.
- `zh`, and `''` for any language: a sign of a script that is written without spaces is a word, and
  so is a run of other letters and digits. Nothing is stemmed.
"""

import functools
import itertools
import re
import types
import unicodedata
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from flaxlm.errors import DataError, choose
from flaxlm.metrics.answers import normal_squad, overlap_f1
from flaxlm.metrics.measure import Measure, check_lengths, mean_measure, weighted_sums

# Thai, Lao, Burmese, Khmer, kana, ideographs.
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003ffff]"
)


@functools.lru_cache(maxsize=65536)
def _kind(character: str) -> str:
    if unicodedata.category(character).startswith("M"):
        return "mark"
    if not character.isalnum():
        return ""
    return "sign" if _UNSPACED.match(character) else "letter"


def words(text: str) -> list[str]:
    """Return the words of a text in any script, in lower case and without punctuation."""
    parts: list[str] = []
    before = ""
    for character in unicodedata.normalize("NFC", text.lower()):
        kind = _kind(character)
        # A mark belongs to what it stands on, a letter to the letters before it.
        if before and (kind == "mark" or kind == before == "letter"):
            parts[-1] += character
        elif kind in ("letter", "sign"):
            parts.append(character)
        if kind != "mark":
            before = kind
    return parts


class Language(NamedTuple):
    """What a language means for each score: ROUGE's stemmer, or `words`; BLEU's tokenizer."""

    stemmed: bool
    bleu: str


LANGUAGES = {"en": Language(True, "13a"), "zh": Language(False, "zh"), "": Language(False, "13a")}


@functools.cache
def _rouge_tokenizer(stemmed: bool):
    """Return what splits a text for rouge-score: `words`, or its own, each word stemmed once."""
    from nltk.stem.porter import PorterStemmer
    from rouge_score import tokenize

    stemmer = types.SimpleNamespace(stem=functools.lru_cache(65536)(PorterStemmer().stem))
    english = functools.partial(tokenize.tokenize, stemmer=stemmer)
    return types.SimpleNamespace(tokenize=english if stemmed else words)


Texts = Sequence[str]
References = Sequence[str | Sequence[str]]


def _texts(predictions: Texts, references: References) -> tuple[list[str], list[list[str]]]:
    """Return both as lists; DataError when they cannot be compared or are no texts."""
    check_lengths(predictions, references)
    groups = [[group] if isinstance(group, str) else list(group) for group in references]
    for n, (text, group) in enumerate(zip(predictions, groups, strict=True)):
        if not group:
            raise DataError(f"example {n + 1} has no reference to compare with")
        for value, what in ((text, "prediction"), *((one, "reference") for one in group)):
            if not isinstance(value, str):
                raise DataError(f"the {what} of example {n + 1} is {value!r}, not a text")
    return list(predictions), groups


def check_language(references: References, language: str) -> None:
    """Raise DataError where `language` would lose most letters of the references.

    Cheap enough to be called when a task's examples are read, long before there is a prediction.
    """
    choose("language", language, LANGUAGES)
    if not LANGUAGES[language].stemmed:
        return
    letters = lost = 0
    for group in references:
        for text in [group] if isinstance(group, str) else group:
            letters += sum(map(str.isalpha, text))
            lost += sum(c.isalpha() for c in text if not c.isascii())
    if 2 * lost > letters:
        raise DataError(
            f"language={language!r} reads ASCII letters alone and would lose "
            f"{100 * lost // letters} % of the references' letters; set it to 'zh', or to '' for "
            "any other language"
        )


def _rouge(
    kind: str, predictions: Texts, references: References, language: str = "en"
) -> np.ndarray:
    """Return the F1 [N] of what a text shares with its best reference (Lin, 2004).

    That is words (`rouge1`), pairs of words (`rouge2`), or a longest common subsequence (`rougeL`).
    """
    from rouge_score.rouge_scorer import RougeScorer

    texts, groups = _texts(predictions, references)
    check_language(groups, language)
    scorer = RougeScorer([kind], tokenizer=_rouge_tokenizer(LANGUAGES[language].stemmed))
    pairs = zip(groups, texts, strict=True)
    return np.array([scorer.score_multi(group, text)[kind].fmeasure for group, text in pairs])


def exact_match(predictions: Texts, references: References, language: str = "en") -> np.ndarray:
    """Return float64 [N], 1 where a text equals a reference apart from runs of white space."""
    choose("language", language, LANGUAGES)
    texts, groups = _texts(predictions, references)
    pairs = zip(texts, groups, strict=True)
    return np.array([float(any(a.split() == b.split() for b in group)) for a, group in pairs])


def token_f1(predictions: Texts, references: References, language: str = "en") -> np.ndarray:
    """Return the F1 [N] of the words that a text shares with its best reference.

    English is normalised as in SQuAD's evaluation (articles and ASCII punctuation dropped); in
    other languages the tokens are `words`. Two texts without any are equal.
    """
    choose("language", language, LANGUAGES)
    texts, groups = _texts(predictions, references)
    split = words if language != "en" else lambda text: normal_squad(text).split()
    pairs = zip(texts, groups, strict=True)
    return np.array([max(overlap_f1(split(a), split(b)) for b in group) for a, group in pairs])


TEXT_SCORES: dict[str, Callable[..., np.ndarray]] = {
    "rouge_1": functools.partial(_rouge, "rouge1"),
    "rouge_2": functools.partial(_rouge, "rouge2"),
    "rouge_l": functools.partial(_rouge, "rougeL"),
    "exact_match": exact_match,
    "f1": token_f1,
}


CORPUS_SCORES = ("bleu", "chrf")


def _corpus_measure(
    name: str, predictions: Texts, references: References, language: str
) -> Measure:
    """Return the measure of sacrebleu's BLEU (Papineni et al., 2002) or chrF2 (Popović, 2015).

    Of several references BLEU counts all, and chrF the best.
    """
    from sacrebleu.metrics import BLEU, CHRF

    bleu = name == "bleu"
    metric = BLEU(tokenize=LANGUAGES[language].bleu, force=True) if bleu else CHRF()
    texts, groups = _texts(predictions, references)
    # As sacrebleu takes references: the first of every text, the second, …
    streams = [list(stream) for stream in itertools.zip_longest(*groups)]
    # What sacrebleu's own bootstrap sums, text by text. Its interval is mean ± half a width, which
    # can leave 0 … 100, and takes its seed from the environment.
    columns = metric._extract_corpus_statistics(texts, streams)

    def of(counts, cells):
        sums = weighted_sums(counts, cells).astype(np.int64).tolist()
        return {name: np.array([metric._compute_score_from_stats(row).score for row in sums])}

    return Measure(np.asarray(columns, np.float64), of)


def text_measures(
    predictions: Texts, references: References, names: Sequence[str], language: str = "en"
) -> list[Measure]:
    """Return the measures `names` of texts: means of `TEXT_SCORES`, and `CORPUS_SCORES`."""
    choose("language", language, LANGUAGES)
    measures = []
    for name in names:
        choose("score", name, [*TEXT_SCORES, *CORPUS_SCORES])
        if name in CORPUS_SCORES:
            measures.append(_corpus_measure(name, predictions, references, language))
        else:
            values = TEXT_SCORES[name](predictions, references, language)
            measures.append(mean_measure(name, values))
    return measures
