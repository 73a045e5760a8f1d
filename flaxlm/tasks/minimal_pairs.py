"""Pairs of sentences that differ in one thing, by likelihood: BLiMP, CrowS-Pairs, and one's own."""

import dataclasses
import difflib
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from flaxlm.data.sources import DataConfig
from flaxlm.data.vocabulary import Tokenizer
from flaxlm.inference.requests import Masked, Reader, Request, Scores, masked, request
from flaxlm.tasks.by_likelihood import Gold, Ranked, groups_of, preferred
from flaxlm.tasks.records import Record, read_split
from flaxlm.tasks.task import Answer, Example


@dataclasses.dataclass(frozen=True)
class MinimalPairs(Ranked):
    """Rows with an acceptable sentence and one that is not.

    `acc` is the share of pairs of which the good one is strictly likelier: by its likelihood as a
    text, or by its pseudo-log-likelihood under a masked LM (Salazar et al., 2020).

    Attributes:
      good_column: the acceptable sentence.
      bad_column: the other.
      group_columns: columns by whose values the score is given as well.
    """

    good_column: str = "good"
    bad_column: str = "bad"
    group_columns: tuple[str, ...] = ()

    metric: ClassVar[str] = "acc"
    sides: ClassVar[tuple[str, str]] = ("good", "bad")

    def examples(self, data: DataConfig, split: str, labels: Sequence[str] = ()) -> list[Example]:
        """Return {id, text, text_pair, gold, groups} for each row; see `Task.examples`."""
        return read_split(data, split, self._example, task=self)

    def _example(self, record: Record) -> Example:
        return {
            "id": record.id,
            "text": record.text(self.good_column),
            "text_pair": record.text(self.bad_column),
            "gold": self.sides[0],
            "groups": groups_of(record, self.group_columns),
        }

    def requests(self, examples: Sequence[Example], reader: Reader) -> list[list[Request]]:
        """Return both sentences of each pair."""
        return [[request(reader, "", e[key]) for key in ("text", "text_pair")] for e in examples]

    def answer(self, example: Example, scores: Scores, masked: bool) -> Answer:
        """Return which side is likelier, '' where neither is."""
        first, second = scores.log_likelihood
        best, shares = preferred([first, second])
        value = "" if first == second else self.sides[best]
        return Answer(value, float(shares[best]), shares)

    def values(self, answers: Sequence[Answer], golds: Sequence[Gold]) -> dict[str, np.ndarray]:
        """Return 1 where the first side was likelier."""
        return {self.metric: np.array([float(a.value == self.sides[0]) for a in answers])}

    def mistake(self, answer: Answer, gold: Gold) -> float:
        """Return the share of the bad side where it was not less likely."""
        return 0.0 if answer.value == gold.value else float(answer.scores[1])

    def show_input(self, example: Example) -> Any:
        """Return both sentences."""
        return {side: example[k] for side, k in zip(self.sides, ("text", "text_pair"), strict=True)}


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
    sides: ClassVar[tuple[str, str]] = ("more stereotyping", "less stereotyping")

    def golds(self, examples: Sequence[Example]) -> list[Gold]:
        """Return the groups of each example: neither sentence is right."""
        return [Gold("", example["groups"]) for example in examples]

    def requests(self, examples: Sequence[Example], reader: Reader) -> list[list[Request]]:
        """Return both sentences, of a masked LM their common tokens."""
        if not reader.traits.bidirectional:
            return super().requests(examples, reader)
        tokenizer = reader.tokenizer
        return [common_tokens(tokenizer, e["text"], e["text_pair"]) for e in examples]

    def mistake(self, answer: Answer, gold: Gold) -> float:
        """Return 0: there is no right answer."""
        return 0.0


def common_tokens(tokenizer: Tokenizer, first: str, second: str) -> list[Masked]:
    """Return the requests for the tokens that two texts share, in the one and in the other."""
    texts = tokenizer.encode_batch([first, second])
    blocks = difflib.SequenceMatcher(None, *texts, autojunk=False).get_matching_blocks()
    before = len(tokenizer.template.single.specials[0])
    found = []
    for ids, starts in zip(texts, ([b.a for b in blocks], [b.b for b in blocks]), strict=True):
        spans = zip(starts, blocks, strict=True)
        places = [before + place for s, b in spans for place in range(s, s + b.size)]
        found.append(masked(tokenizer, *tokenizer.with_specials(ids), places))
    return found
