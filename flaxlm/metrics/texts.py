"""Scores of generated texts against one reference or several each.

ROUGE by rouge-score, BLEU and chrF by sacrebleu. `language` says how a text falls into words:

- `en`: runs of ASCII letters and digits, Porter-stemmed for ROUGE, as papers report for English.
  Every other character is lost, so that it is refused where most letters are others.
- `zh`, and `''` for any language: a sign of a script that is written without spaces is a word, and
  so is a run of other letters and digits. Nothing is stemmed.
"""

import functools
import re
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
    found: list[str] = []
    before = ""
    for character in unicodedata.normalize("NFC", text.lower()):
        kind = _kind(character)
        # A mark belongs to what it stands on, a letter to the letters before it.
        if before and (kind == "mark" or kind == before == "letter"):
            found[-1] += character
        elif kind in ("letter", "sign"):
            found.append(character)
        if kind != "mark":
            before = kind
    return found


class Language(NamedTuple):
    """What a language means for each score: ROUGE's stemmer, or `words`; BLEU's tokenizer."""

    stemmed: bool
    bleu: str


LANGUAGES = {"en": Language(True, "13a"), "zh": Language(False, "zh"), "": Language(False, "13a")}


class _Words:
    """A tokenizer of rouge-score's that splits by `words`."""

    def tokenize(self, text: str) -> list[str]:
        return words(text)


class _English:
    """rouge-score's own tokenizer, with each word stemmed once and not at every occurrence."""

    def __init__(self):
        from nltk.stem.porter import PorterStemmer
        from rouge_score import tokenize

        self.stem = functools.lru_cache(maxsize=65536)(PorterStemmer().stem)
        self._split = tokenize.tokenize

    def tokenize(self, text: str) -> list[str]:
        return self._split(text, self)


@functools.cache
def _rouge_tokenizer(stemmed: bool) -> _Words | _English:
    return _English() if stemmed else _Words()


def _texts(
    predictions: Sequence[str], references: Sequence[str | Sequence[str]]
) -> tuple[list[str], list[list[str]]]:
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


def check_language(references: Sequence[str | Sequence[str]], language: str) -> None:
    """Raise DataError where `language` would lose most letters of the references.

    Cheap enough to be called when a task's examples are read, long before there is a prediction.
    """
    choose("language", language, LANGUAGES)
    if not LANGUAGES[language].stemmed:
        return
    letters = ascii_letters = 0
    for group in references:
        for text in [group] if isinstance(group, str) else group:
            letters += sum(map(str.isalpha, text))
            ascii_letters += sum(c.isalpha() for c in text if c.isascii())
    if 2 * ascii_letters < letters:
        lost = 100 * (letters - ascii_letters) // letters
        raise DataError(
            f"language={language!r} reads ASCII letters alone and would lose {lost} % of the "
            "references' letters; set it to 'zh', or to '' for any other language"
        )


def _rouge(
    kind: str,
    predictions: Sequence[str],
    references: Sequence[str | Sequence[str]],
    language: str = "en",
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


def exact_match(
    predictions: Sequence[str], references: Sequence[str | Sequence[str]], language: str = "en"
) -> np.ndarray:
    """Return float64 [N], 1 where a text equals a reference apart from runs of white space.

    That is so in every `language`, which is here to be given to all of `TEXT_SCORES` alike.
    """
    choose("language", language, LANGUAGES)
    texts, groups = _texts(predictions, references)
    pairs = zip(texts, groups, strict=True)
    return np.array([float(any(a.split() == b.split() for b in group)) for a, group in pairs])


def token_f1(
    predictions: Sequence[str], references: Sequence[str | Sequence[str]], language: str = "en"
) -> np.ndarray:
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


def _streams(groups: list[list[str]]) -> list[list[str | None]]:
    """Return references as sacrebleu takes them: the first of every text, the second, …"""
    most = max(map(len, groups))
    return [[g[k] if k < len(g) else None for g in groups] for k in range(most)]


def _bleu(language: str):
    """Return sacrebleu's BLEU (Papineni et al., 2002), 0 to 100, over all references."""
    from sacrebleu.metrics import BLEU

    return BLEU(tokenize=LANGUAGES[language].bleu, force=True)


def _chrf(language: str):
    """Return sacrebleu's chrF2 (Popović, 2015), 0 to 100; of several references the best."""
    from sacrebleu.metrics import CHRF

    return CHRF()


CORPUS_SCORES: dict[str, Callable] = {"bleu": _bleu, "chrf": _chrf}


def _corpus_measure(
    name: str, predictions: Sequence[str], references: Sequence, language: str
) -> Measure:
    # What sacrebleu's own bootstrap sums, text by text. Its interval is mean ± half a width, which
    # can leave 0 … 100, and takes its seed from the environment.
    metric, (texts, groups) = CORPUS_SCORES[name](language), _texts(predictions, references)
    columns = metric._extract_corpus_statistics(texts, _streams(groups))

    def of(counts, cells):
        sums = weighted_sums(counts, cells).astype(np.int64).tolist()
        return {name: np.array([metric._compute_score_from_stats(row).score for row in sums])}

    return Measure(np.asarray(columns, np.float64), of)


def text_measures(
    predictions: Sequence[str],
    references: Sequence[str | Sequence[str]],
    names: Sequence[str],
    language: str = "en",
) -> list[Measure]:
    """Return the measures of texts: means of `TEXT_SCORES`, and `CORPUS_SCORES`.

    Args:
      predictions: a text for each example.
      references: a text, or several, for each.
      names: in the order they are wanted in.
      language: one of `LANGUAGES`.

    Raises:
      ConfigError: a name or the language is not known.
      DataError: the texts cannot be compared, or are not of that language.
    """
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
