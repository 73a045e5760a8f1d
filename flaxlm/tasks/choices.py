"""Multiple choice and last words, by likelihood: HellaSwag, LAMBADA, and files of one's own."""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from flaxlm.data.sources import DataConfig
from flaxlm.data.tables import shown
from flaxlm.errors import DataError
from flaxlm.inference.requests import Reader, Request, Scores, cloze, request
from flaxlm.metrics.measure import Measure, perplexity
from flaxlm.tasks.by_likelihood import Gold, Prompted, preferred
from flaxlm.tasks.records import Record
from flaxlm.tasks.task import Answer, Example


@dataclasses.dataclass(frozen=True)
class MultipleChoice(Prompted):
    """Rows with a context, several texts that may follow it, and which of them does.

    Each of these is a metric: the likeliest choice (`acc`); its log-likelihood divided by the
    choice's characters, as lm-evaluation-harness does (`acc_norm`), by its tokens (`acc_tokens`)
    or by its bytes of UTF-8 (`acc_bytes`); and after subtracting that of the choice behind
    another context (`acc_uncond`; Brown et al., 2020, section 2.4).

    Attributes:
      context_column: the context.
      choices_column: a list of texts; with `choice_columns` unused.
      choice_columns: the columns of a CSV or TSV file that hold one choice each.
      gold_column: the right choice: a number from 0, a letter from A, or its text.
      unconditional: the other context of `acc_uncond`; '' for the beginning of a text.
    """

    context_column: str = "context"
    choices_column: str = "choices"
    choice_columns: tuple[str, ...] = ()
    gold_column: str = "gold"
    unconditional: str = ""

    norms: ClassVar[tuple[str, ...]] = ("acc", "acc_norm", "acc_tokens", "acc_bytes", "acc_uncond")

    def examples(self, data: DataConfig, split: str, labels: Sequence[str] = ()) -> list[Example]:
        """Return {id, text, choices, gold, groups, solved} for each row; see `Task.examples`."""
        return self.prompted(data, split, self._example, self.gold_column)

    def _example(self, record: Record) -> Example:
        choices = self._choices(record)
        gold = self._gold(record, choices)
        return {
            "id": record.id,
            "text": record.text(self.context_column),
            "choices": choices,
            "gold": gold,
            "groups": (),
            "solved": "" if gold is None else choices[gold],
        }

    def _choices(self, record: Record) -> list[str]:
        if self.choice_columns:
            return [record.text(column) for column in self.choice_columns]
        column = self.choices_column
        choices = record.columns.get(column)
        if not isinstance(choices, list):
            record.text(column)  # says so where there is no such column
        good = isinstance(choices, list) and len(choices) > 1
        if not good or not all(isinstance(c, str) and c.strip() for c in choices):
            raise DataError(
                f"{record.place}: column {column!r} holds {shown(choices)}, not a list "
                "of two or more texts; columns of one text each go into task.choice_columns"
            )
        return choices

    def _gold(self, record: Record, choices: list[str]) -> int | None:
        if not record.graded:
            return None
        value = record.columns.get(self.gold_column)
        if not isinstance(value, int) or isinstance(value, bool):
            value = record.text(self.gold_column)
            if value.isdecimal():
                value = int(value)
            elif len(value) == 1 and value.isascii() and value.isalpha():
                value = ord(value.upper()) - ord("A")
            else:
                value = choices.index(value) if choices.count(value) == 1 else -1
        if not 0 <= value < len(choices):
            raise DataError(
                f"{record.place}: column {self.gold_column!r} holds "
                f"{shown(record.columns[self.gold_column])}, which is none of the "
                f"{len(choices)} choices: give a number from 0, a letter from A, or a choice's text"
            )
        return value

    def requests(self, examples: Sequence[Example], reader: Reader) -> list[list[Request]]:
        """Return each choice behind the context, then each behind the unconditional one."""
        return [
            [
                request(reader, context, self.joint + choice)
                for context in (example["text"], self.unconditional)
                for choice in example["choices"]
            ]
            for example in examples
        ]

    def answer(self, example: Example, scores: Scores, masked: bool) -> Answer:
        """Return the choice by each norm."""
        choices = example["choices"]
        likely, other = np.split(scores.log_likelihood, 2)
        tokens = scores.num_tokens[: len(choices)]
        letters = [len(choice) for choice in choices]
        sizes = [len(choice.encode()) for choice in choices]
        normed = (likely, likely / letters, likely / tokens, likely / sizes, likely - other)
        best, shares = preferred(likely)
        picks = {name: int(np.argmax(v)) for name, v in zip(self.norms, normed, strict=True)}
        return Answer(picks, float(shares[best]), shares)

    def values(self, answers: Sequence[Answer], golds: Sequence[Gold]) -> dict[str, np.ndarray]:
        """Return, for each norm, 1 where the right choice was taken."""
        pairs = list(zip(answers, golds, strict=True))
        return {
            name: np.array([float(answer.value[name] == gold.value) for answer, gold in pairs])
            for name in self.norms
        }

    def mistake(self, answer: Answer, gold: Gold) -> float:
        """Return the share of a wrong choice."""
        return 0.0 if answer.value["acc"] == gold.value else answer.score

    def show_input(self, example: Example) -> Any:
        """Return context and choices."""
        return {"text": example["text"], "choices": example["choices"]}


@dataclasses.dataclass(frozen=True)
class HellaSwag(MultipleChoice):
    """HellaSwag (Zellers et al., 2019): how a scene goes on, one of four."""

    context_column: str = "query"


@dataclasses.dataclass(frozen=True)
class LastWord(Prompted):
    """Rows with a context and the word that ends it.

    `acc` is the share of words that greedy decoding writes, `perplexity` the exponential of the
    mean nats of a word. A masked LM is asked for the word's tokens from left to right.

    Attributes:
      context_column: the context.
      word_column: the word; '' where it is the last of the context, behind white space.
    """

    context_column: str = "context"
    word_column: str = "word"

    def examples(self, data: DataConfig, split: str, labels: Sequence[str] = ()) -> list[Example]:
        """Return {id, text, gold, groups, solved} for each row; see `Task.examples`."""
        return self.prompted(data, split, self._example)

    def _example(self, record: Record) -> Example:
        text = record.text(self.context_column)
        if self.word_column:
            word = record.text(self.word_column)
        else:
            text, word = self._split(record, text.strip())
        return {"id": record.id, "text": text, "gold": word, "groups": (), "solved": word}

    def _split(self, record: Record, text: str) -> list[str]:
        parts = text.rsplit(maxsplit=1)
        if len(parts) < 2:
            raise DataError(
                f"{record.place}: column {self.context_column!r} holds one word, so none would be "
                "left before it; name the column of the word in task.word_column"
            )
        return parts

    def requests(self, examples: Sequence[Example], reader: Reader) -> list[list[Request]]:
        """Return the word behind its context."""
        if reader.traits.bidirectional:
            tokenizer = reader.tokenizer
            return [[cloze(tokenizer, e["text"], self.joint + e["gold"], "")] for e in examples]
        return [[request(reader, e["text"], self.joint + e["gold"])] for e in examples]

    def answer(self, example: Example, scores: Scores, masked: bool) -> Answer:
        """Return whether the word is what greedy decoding writes, and its log-likelihood."""
        return Answer(bool(scores.greedy[0]), float(scores.log_likelihood[0]))

    def values(self, answers: Sequence[Answer], golds: Sequence[Gold]) -> dict[str, np.ndarray]:
        """Return the matches, and the nats of each word."""
        return {
            "acc": np.array([float(answer.value) for answer in answers]),
            "perplexity": np.array([-answer.score for answer in answers]),
        }

    def measures(self, answers: Sequence[Answer], golds: Sequence[Gold]) -> list[Measure]:
        """Return accuracy and the perplexity of a word."""
        accuracy, nats = super().measures(answers, golds)
        return [accuracy, dataclasses.replace(nats, then=perplexity)]

    def mistake(self, answer: Answer, gold: Gold) -> float:
        """Return the nats of a word that was not found."""
        return 0.0 if answer.value else -answer.score


@dataclasses.dataclass(frozen=True)
class Lambada(LastWord):
    """LAMBADA (Paperno et al., 2016) as rows {context, continuation}."""

    word_column: str = "continuation"
