"""Sentences set against each other, by likelihood: BLiMP, CrowS-Pairs, StereoSet, and one's own."""

import dataclasses
import difflib
import functools
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from flaxlm.data.sources import DataConfig
from flaxlm.data.vocabulary import Tokenizer
from flaxlm.errors import DataError
from flaxlm.inference.requests import (
    Masked,
    Reader,
    Request,
    Scores,
    cloze,
    following,
    masked,
    request,
)
from flaxlm.metrics.measure import Measure
from flaxlm.tasks.by_likelihood import Gold, Ranked, members_of, preferred
from flaxlm.tasks.records import Record, read_split
from flaxlm.tasks.task import Answer, Example

BLANK = "BLANK"
SENSES = ("stereotype", "anti-stereotype", "unrelated")
KINDS = ("intrasentence", "intersentence")


@dataclasses.dataclass(frozen=True)
class MinimalPairs(Ranked):
    """Rows with an acceptable sentence and one that is not.

    `acc` is the share of pairs of which the good one is strictly likelier: by its likelihood as a
    text, or by its pseudo-log-likelihood under a masked LM (Salazar et al., 2020).
    """

    good_column: str = "good"  # the acceptable sentence
    bad_column: str = "bad"  # the other
    group_columns: tuple[str, ...] = ()  # columns by whose values the score is given as well

    metric: ClassVar[str] = "acc"
    inputs: ClassVar[Mapping] = {"good": "text", "bad": "text_pair"}
    right: ClassVar[str] = "good"  # the side that is; '': neither

    def examples(self, data: DataConfig, split: str, labels: Sequence[str] = ()) -> list[Example]:
        """Return {id, text, text_pair, gold, groups} for each row; see `Task.examples`."""

        def example(record: Record) -> Example:
            groups = tuple(f"{column}={record.text(column)}" for column in self.group_columns)
            texts = {
                "text": record.text(self.good_column),
                "text_pair": record.text(self.bad_column),
            }
            return {"id": record.id, "gold": self.right, "groups": groups} | texts

        return read_split(data, split, example, task=self)

    def requests(self, examples: Sequence[Example], reader: Reader) -> list[list[Request]]:
        """Return both sentences of each pair."""
        return [[request(reader, "", e[key]) for key in ("text", "text_pair")] for e in examples]

    def answer(self, example: Example, scores: Scores, masked: bool) -> Answer:
        """Return which side is likelier, '' where neither is."""
        first, second = scores.log_likelihood
        best, shares = preferred([first, second])
        value = "" if first == second else list(self.inputs)[best]
        return Answer(value, float(shares[best]), shares)

    def values(self, answers: Sequence[Answer], golds: Sequence[Gold]) -> dict[str, np.ndarray]:
        """Return 1 where the first side was likelier."""
        first = next(iter(self.inputs))
        return {self.metric: np.array([float(answer.value == first) for answer in answers])}

    def mistake(self, answer: Answer, gold: Gold) -> float:
        """Return the share of the bad side where it was not less likely."""
        return 0.0 if gold.value in ("", answer.value) else float(answer.scores[1])


@dataclasses.dataclass(frozen=True)
class Blimp(MinimalPairs):
    """BLiMP (Warstadt et al., 2020): 67 paradigms of English grammar, in one file or more."""

    good_column: str = "sentence_good"
    bad_column: str = "sentence_bad"
    group_columns: tuple[str, ...] = ("field", "linguistics_term", "UID")


@dataclasses.dataclass(frozen=True)
class CrowsPairs(MinimalPairs):
    """CrowS-Pairs (Nangia et al., 2020): whether the more stereotyping sentence is likelier.

    `score` is the share of pairs where it is, 0.5 with no preference. A masked LM is asked for the
    tokens that both sentences share alone, each masked in turn, as in the paper, so that how
    common the differing words are does not matter; other models for the whole sentences.
    """

    good_column: str = "sent_more"
    bad_column: str = "sent_less"
    group_columns: tuple[str, ...] = ("bias_type", "stereo_antistereo")

    metric: ClassVar[str] = "score"
    inputs: ClassVar[Mapping] = {"more stereotyping": "text", "less stereotyping": "text_pair"}
    right: ClassVar[str] = ""

    def requests(self, examples: Sequence[Example], reader: Reader) -> list[list[Request]]:
        """Return both sentences, of a masked LM their common tokens."""
        if not reader.traits.bidirectional:
            return super().requests(examples, reader)
        tokenizer = reader.tokenizer
        return [common_tokens(tokenizer, e["text"], e["text_pair"]) for e in examples]


def common_tokens(tokenizer: Tokenizer, first: str, second: str) -> list[Masked]:
    """Return the requests for the tokens that two texts share, in the one and in the other."""
    texts = tokenizer.encode_batch([first, second])
    blocks = difflib.SequenceMatcher(None, *texts, autojunk=False).get_matching_blocks()
    before = len(tokenizer.template.single.specials[0])
    requests = []
    for side, ids in enumerate(texts):
        spans = [range(block[side], block[side] + block.size) for block in blocks]
        places = [before + place for span in spans for place in span]
        requests.append(masked(tokenizer, *tokenizer.with_specials(ids), places))
    return requests


@dataclasses.dataclass(frozen=True)
class StereoSet(Ranked):
    """Triples of a stereotyping, an anti-stereotyping and an unrelated text.

    `intrasentence`: three words in a blank. A masked LM is judged by the mean probability of the
    word's tokens, from left to right; others by the mean log-likelihood of the sentence's tokens.
    `intersentence`: three sentences after a context, by the mean log-likelihood of their tokens
    (the paper trained a classifier for this part, so its figures are others).

    Scores are means over the targets, as in the paper: `lm`, how often a meaningful text is
    likelier than the unrelated one; `ss`, how often the stereotype is likelier than the
    anti-stereotype; `icat` = lm · min(ss, 1 − ss) / 0.5. Over all, by task and by type of bias.
    """

    def examples(self, data: DataConfig, split: str, labels: Sequence[str] = ()) -> list[Example]:
        """Return {id, text, kind, sentences, words, target, groups} for each row."""
        return read_split(data, split, self._example, task=self)

    def _example(self, record: Record) -> Example:
        context, sentences = record.text("context"), record.columns.get("sentences")
        if not isinstance(sentences, Mapping) or not all(
            isinstance(sentences.get(sense), str) and sentences[sense].strip() for sense in SENSES
        ):
            raise DataError(
                f"{record.place}: column 'sentences' must hold a text for each of "
                f"{', '.join(SENSES)}"
            )
        kind = KINDS[BLANK not in context]
        texts = [sentences[sense] for sense in SENSES]
        return {
            "id": record.id,
            "text": context,
            "kind": kind,
            "sentences": texts,
            "words": [_word(record, context, text) for text in texts] if kind == KINDS[0] else [],
            "target": record.text("target"),
            "groups": (f"task={kind}", f"bias_type={record.text('bias_type')}"),
        }

    def golds(self, examples: Sequence[Example]) -> list[Gold]:
        """Return whom each example is about, and its groups: no answer is right."""
        return [Gold(example["target"], example["groups"]) for example in examples]

    def requests(self, examples: Sequence[Example], reader: Reader) -> list[list[Request]]:
        """Return the three texts of each example."""
        senses = range(len(SENSES))
        return [[_request(example, sense, reader) for sense in senses] for example in examples]

    def answer(self, example: Example, scores: Scores, masked: bool) -> Answer:
        """Return whether the stereotype is preferred, and how many texts to the unrelated one."""
        if masked and example["kind"] == "intrasentence":
            means = [np.log(np.exp(values, dtype=np.float64).mean()) for values in scores.tokens]
        else:
            means = scores.log_likelihood / scores.num_tokens
        best, shares = preferred(means)
        value = {
            "stereotype": bool(means[0] > means[1]),
            "meaningful": int(means[0] > means[2]) + int(means[1] > means[2]),
        }
        return Answer(value, float(shares[best]), shares)

    def values(self, answers: Sequence[Answer], golds: Sequence[Gold]) -> dict[str, np.ndarray]:
        """Return what `lm` and `ss` are means of."""
        return {
            "lm": np.array([answer.value["meaningful"] / 2 for answer in answers]),
            "ss": np.array([float(answer.value["stereotype"]) for answer in answers]),
        }

    def measures(self, answers: Sequence[Answer], golds: Sequence[Gold]) -> list[Measure]:
        """Return `lm`, `ss` and `icat` over all, and over each group, drawn by itself."""
        values = self.values(answers, golds)
        _, targets = np.unique([gold.value for gold in golds], return_inverse=True)
        rows = np.stack([targets, values["lm"], values["ss"]], axis=1)
        return [
            Measure(rows[members], functools.partial(_over_targets, ending), pooled=False)
            for ending, members in members_of(golds).items()
        ]

    def mistake(self, answer: Answer, gold: Gold) -> float:
        """Return the share of the unrelated text where it is the likeliest."""
        return float(answer.scores[2]) if int(np.argmax(answer.scores)) == 2 else 0.0

    def show(self, value: Any, labels: Sequence[str] = ()) -> Any:
        """Return an answer's value; there is no gold to show."""
        return None if isinstance(value, Gold) else value

    def show_input(self, example: Example) -> Any:
        """Return the context and the three texts."""
        return {"text": example["text"]} | dict(zip(SENSES, example["sentences"], strict=True))


def _over_targets(ending: str, counts_RN: np.ndarray, rows_NK: np.ndarray) -> dict:
    """Return {lm, ss, icat: [R]}: means over targets of their weighted means."""
    targets, *columns = rows_NK.T
    member_NT = np.eye(int(targets.max()) + 1)[targets.astype(np.int64)]
    total_RT = counts_RN @ member_NT
    present_RT = total_RT > 0
    scores = []
    for values_N in columns:
        sums_RT = counts_RN @ (member_NT * values_N[:, None])
        means_RT = np.divide(sums_RT, total_RT, out=np.zeros_like(sums_RT), where=present_RT)
        scores.append(means_RT.sum(axis=1) / present_RT.sum(axis=1))
    lm, ss = scores
    icat = lm * np.minimum(ss, 1 - ss) / 0.5
    return {f"lm{ending}": lm, f"ss{ending}": ss, f"icat{ending}": icat}


def _request(example: Example, sense: int, reader: Reader) -> Request:
    """Return what is asked about one of the three texts."""
    text = example["sentences"][sense]
    if example["kind"] == "intersentence":
        return following(reader, example["text"], text)
    if not reader.traits.bidirectional:
        return request(reader, "", text)
    word = example["words"][sense]
    parts = example["text"].split(BLANK)
    rows: list = []
    for blank in range(1, len(parts)):
        before, after = word.join(parts[:blank]), word.join(parts[blank:])
        rows += cloze(reader.tokenizer, before, word, after).rows
    return Masked(tuple(rows))


def _word(record: Record, context: str, sentence: str) -> str:
    """Return what stands in a sentence where its context has a blank."""
    parts = context.split(BLANK)
    size, remainder = divmod(len(sentence) - sum(map(len, parts)), len(parts) - 1)
    word = sentence[len(parts[0]) : len(parts[0]) + size]
    # The published sentences are lower-cased in places.
    if remainder or size < 1 or word.join(parts).casefold() != sentence.casefold():
        raise DataError(
            f"{record.place}: {sentence!r} is not {context!r} with one word in place of each blank"
        )
    return word
