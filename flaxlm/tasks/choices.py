"""Multiple choice and last words, by likelihood: HellaSwag, LAMBADA, and files of one's own."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np

from flaxlm.data.sources import DataConfig
from flaxlm.data.tables import integer, shown
from flaxlm.errors import ConfigError, DataError, choose
from flaxlm.inference.requests import Reader, Request, Scores, cloze, request
from flaxlm.metrics.measure import Measure, perplexity
from flaxlm.tasks.by_likelihood import Gold, Prompted, preferred
from flaxlm.tasks.records import Record
from flaxlm.tasks.task import Answer, Example

# What a choice's log-likelihood may be set against, and the metric that comes of it.
NORMS = {
    "characters": "acc_norm",
    "tokens": "acc_tokens",
    "bytes": "acc_bytes",
    "unconditional": "acc_uncond",
}


@dataclasses.dataclass(frozen=True)
class MultipleChoice(Prompted):
    """Rows with a context, several texts that may follow it, and which of them does.

    `acc` takes the likeliest choice. `normalize` adds metrics: `acc_norm`, `acc_tokens` and
    `acc_bytes` divide the log-likelihood by the choice's characters (as lm-evaluation-harness
    does), tokens or bytes of UTF-8; `acc_uncond` subtracts that of the choice behind another
    context (Brown et al., 2020, section 2.4), which doubles the work.
    """

    context_column: str = "context"  # the context
    choices_column: str = "choices"  # a list of texts; with `choice_columns` unused
    choice_columns: tuple[str, ...] = ()  # of a CSV or TSV file: those that hold one choice each
    gold_column: str = "gold"  # the right choice: a number from 0, a letter from A, or its text
    normalize: tuple[str, ...] = ("characters", "tokens", "bytes")  # also: unconditional
    unconditional: str = ""  # the other context of `acc_uncond`; '' for the beginning of a text

    inputs: ClassVar[Mapping] = {"text": "text", "choices": "choices"}

    def __post_init__(self):
        super().__post_init__()
        for name in self.normalize:
            choose("task.normalize", name, NORMS)
        if self.unconditional and "unconditional" not in self.normalize:
            raise ConfigError(
                "task.unconditional is a context of its own, and task.normalize does not name "
                "'unconditional', which asks for the choices behind it"
            )

    @property
    def norms(self) -> tuple[str, ...]:
        """The metrics."""
        return ("acc", *(NORMS[name] for name in self.normalize))

    def examples(self, data: DataConfig, split: str, labels: Sequence[str] = ()) -> list[Example]:
        """Return {id, text, choices, gold, solved} for each row; see `Task.examples`."""
        return self.prompted(data, split, self._example, self.gold_column)

    def _example(self, record: Record) -> Example:
        choices = listed_texts(record, self.choices_column, self.choice_columns, "choice_columns")
        gold = right_choice(record, self.gold_column, choices)
        return {
            "id": record.id,
            "text": record.text(self.context_column),
            "choices": choices,
            "gold": gold,
            "solved": "" if gold is None else choices[gold],
        }

    def requests(self, examples: Sequence[Example], reader: Reader) -> list[list[Request]]:
        """Return each choice behind the context, then each behind the unconditional one, if any."""
        others = [self.unconditional] * ("unconditional" in self.normalize)
        return [
            [
                request(reader, context, self.joint + choice)
                for context in (example["text"], *others)
                for choice in example["choices"]
            ]
            for example in examples
        ]

    def answer(self, example: Example, scores: Scores, masked: bool) -> Answer:
        """Return the choice by each norm."""
        choices = example["choices"]
        likely, behind_other = np.split(scores.log_likelihood, [len(choices)])
        sizes = {
            "characters": [len(choice) for choice in choices],
            "tokens": scores.num_tokens[: len(choices)],
            "bytes": [len(choice.encode()) for choice in choices],
        }
        normed = {"acc": likely}
        for name in self.normalize:
            normed[NORMS[name]] = likely / sizes[name] if name in sizes else likely - behind_other
        best, shares = preferred(likely)
        picks = {name: int(np.argmax(values)) for name, values in normed.items()}
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


def listed_texts(record: Record, column: str, columns: Sequence[str], key: str) -> list[str]:
    """Return the two or more texts of a column with a list, or of `columns`, which `key` names."""
    if columns:
        return [record.text(name) for name in columns]
    texts = record.columns.get(column)
    if not isinstance(texts, list):
        record.text(column)  # says so where there is no such column
    good = isinstance(texts, list) and len(texts) > 1
    if not good or not all(isinstance(text, str) and text.strip() for text in texts):
        raise DataError(
            f"{record.place}: column {column!r} holds {shown(texts)}, not a list "
            f"of two or more texts; columns of one text each go into task.{key}"
        )
    return texts


def right_choice(record: Record, column: str, choices: Sequence[str]) -> int | None:
    """Return the place of the right choice: from a number, a letter, its text; None: not known."""
    if not record.graded:
        return None
    value = integer(record.columns.get(column))
    if value is None:
        text = record.text(column)
        meant = choices.index(text) if choices.count(text) == 1 else -1
        if re.fullmatch(r"\d{1,20}(\.0+)?", text):
            value = int(text.partition(".")[0])
        elif len(text) == 1 and text.isascii() and text.isalpha():
            value = ord(text.upper()) - ord("A")
        else:
            value = meant
        if meant not in (-1, value) and value < len(choices):
            raise DataError(
                f"{record.place}: column {column!r} holds {text!r}, which is the text of "
                f"choice {meant} and the place of choice {value}: write 0{meant} or 0{value}, the "
                "right place"
            )
    if not 0 <= value < len(choices):
        raise DataError(
            f"{record.place}: column {column!r} holds {shown(record.columns[column])}, which is "
            f"none of the {len(choices)} choices: give a number from 0, a letter from A, or a "
            "choice's text"
        )
    return value


@dataclasses.dataclass(frozen=True)
class HellaSwag(MultipleChoice):
    """HellaSwag (Zellers et al., 2019): how a scene goes on, one of four."""

    context_column: str = "query"


@dataclasses.dataclass(frozen=True)
class LastWord(Prompted):
    """Rows with a context and the word that ends it.

    `acc` is the share of words that greedy decoding writes, `perplexity` the exponential of the
    mean nats of a word. A masked LM is asked for the word's tokens from left to right.
    """

    context_column: str = "context"  # the context
    word_column: str = "word"  # the word; '' where it is the last of the context

    def examples(self, data: DataConfig, split: str, labels: Sequence[str] = ()) -> list[Example]:
        """Return {id, text, gold, solved} for each row; see `Task.examples`."""
        return self.prompted(data, split, self._example)

    def _example(self, record: Record) -> Example:
        text, named = record.text(self.context_column), self.word_column
        parts = [text, record.text(named)] if named else text.strip().rsplit(maxsplit=1)
        if len(parts) < 2:
            raise DataError(
                f"{record.place}: column {self.context_column!r} holds one word, so none would be "
                "left before it; name the column of the word in task.word_column"
            )
        return {"id": record.id, "text": parts[0], "gold": parts[1], "solved": parts[1]}

    def requests(self, examples: Sequence[Example], reader: Reader) -> list[list[Request]]:
        """Return the word behind its context."""
        pairs = [(example["text"], self.joint + example["gold"]) for example in examples]
        if reader.traits.bidirectional:
            return [[cloze(reader.tokenizer, context, word, "")] for context, word in pairs]
        return [[request(reader, context, word)] for context, word in pairs]

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
