"""Schemas, by likelihood: which of several contexts a text goes on from (Winograd, WinoGrande)."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np

from flaxlm.data.sources import DataConfig
from flaxlm.inference.requests import Reader, Request, Scores, request
from flaxlm.tasks.by_likelihood import Gold, Prompted, preferred
from flaxlm.tasks.choices import listed_texts, right_choice
from flaxlm.tasks.records import Record
from flaxlm.tasks.task import Answer, Example


@dataclasses.dataclass(frozen=True)
class Schema(Prompted):
    """Rows with several contexts, the text that follows them all, and which of them is right.

    Of a sentence with a pronoun, a context is the sentence up to it, with one of the candidates in
    its place. `acc` takes the context after which the rest of the sentence is likeliest (partial
    evaluation: Trinh & Le, 2018, section 3.1): how common the candidates are does not matter, nor
    how long they are.
    """

    contexts_column: str = "contexts"  # a list of texts; with `context_columns` unused
    context_columns: tuple[str, ...] = ()  # of a CSV or TSV file: those that hold one context each
    continuation_column: str = "continuation"  # the text that follows
    gold_column: str = "gold"  # the right context: a number from 0, a letter from A, or its text

    inputs: ClassVar[Mapping] = {
        "prefix": "prefix",
        "contexts": "contexts",
        "continuation": "solved",
    }

    def examples(self, data: DataConfig, split: str, labels: Sequence[str] = ()) -> list[Example]:
        """Return {id, text, prefix, contexts, gold, solved} for each row; see `Task.examples`."""
        return self.prompted(data, split, self._example, self.gold_column)

    def _example(self, record: Record) -> Example:
        columns = self.context_columns
        contexts = listed_texts(record, self.contexts_column, columns, "context_columns")
        gold = right_choice(record, self.gold_column, contexts)
        return {
            "id": record.id,
            "text": contexts[gold or 0],
            "contexts": contexts,
            "gold": gold,
            "solved": record.text(self.continuation_column),
        }

    def requests(self, examples: Sequence[Example], reader: Reader) -> list[list[Request]]:
        """Return the continuation behind each context."""
        return [
            [
                request(reader, example["prefix"] + context, self.joint + example["solved"])
                for context in example["contexts"]
            ]
            for example in examples
        ]

    def answer(self, example: Example, scores: Scores, masked: bool) -> Answer:
        """Return the context that the continuation is likeliest behind."""
        best, shares = preferred(scores.log_likelihood)
        return Answer(best, float(shares[best]), shares)

    def values(self, answers: Sequence[Answer], golds: Sequence[Gold]) -> dict[str, np.ndarray]:
        """Return 1 where the right context was taken."""
        pairs = zip(answers, golds, strict=True)
        return {"acc": np.array([float(answer.value == gold.value) for answer, gold in pairs])}

    def mistake(self, answer: Answer, gold: Gold) -> float:
        """Return the share of a wrong context."""
        return 0.0 if answer.value == gold.value else answer.score
