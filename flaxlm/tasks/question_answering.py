"""Answers that stand in a text: SQuAD v1.1 and v2.0, CMRC 2018, and files of one's own."""

import dataclasses
import functools
import json
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
from scipy.special import softmax

from flaxlm.data.sources import DataConfig
from flaxlm.data.tables import integer
from flaxlm.errors import DataError, check_range, choose
from flaxlm.metrics.answers import STYLES, best_threshold, has_answer, span_measures, span_values
from flaxlm.metrics.measure import Measure
from flaxlm.tasks.answer_spans import best_spans, distinct, locate
from flaxlm.tasks.records import Record, read_split
from flaxlm.tasks.squad_json import answers_of, note_id, read_questions
from flaxlm.tasks.task import Answer, Answers, Example, Examples, Labels, Task, check_count

Golds = Sequence[tuple[str, ...]]


class Found(NamedTuple):
    """What a model found in a context."""

    text: str  # its answer; '' says that there is none
    candidate: str  # the best that stands in the context; '' where nothing can be pointed at
    null_odds: float = 0.0  # by how much "no answer" scores above it, in logits
    # The best answers with their probabilities; with that of no answer, if any, they sum to 1.
    best: tuple[tuple[str, float], ...] = ()


@dataclasses.dataclass(frozen=True)
class QuestionAnswering(Task):
    """Questions whose answers stand in a context, in SQuAD's JSON or as rows of a table.

    The columns of a SQuAD file have the names below. An answer that stands elsewhere in the
    context than it says is moved to the nearest place where it does stand; a warning counts them.

    Questions that are empty, or of which no answer stands in the context, are errors in training;
    `skip_unusable` leaves them out, and counts them. In evaluation they are answered and scored, an
    empty one only with `skip_unusable`. The score `best_threshold` is the `null_threshold` to take.
    """

    question_column: str = "question"  # its name in a table
    context_column: str = "context"  # its name in a table
    answers_column: str = "answers"  # their name in a table
    id_column: str = ""  # the question's id; '' for `id` or, where there is none, its place
    unanswerable: bool = False  # a question may have no answer
    null_threshold: float = 0.0  # null odds above which the answer is withheld, if `unanswerable`
    n_best: int = 20  # how many answers to a question are kept
    max_answer_tokens: int = 30  # most tokens of an answer
    style: str = "squad"  # how answers are compared, `squad` or `cmrc`
    skip_unusable: bool = False  # leave questions out of training that are empty or unanswered

    objective: ClassVar[str] = "question_answering"
    learns: ClassVar[str] = "answers"
    inputs: ClassVar[Mapping] = {"question": "text", "context": "text_pair"}
    defaults: ClassVar[Mapping] = {
        "train": {"length": 384},
        "eval": {"metric": "f1", "mode": "max"},
    }

    def __post_init__(self):
        choose("task.style", self.style, STYLES)
        check_range("task", self, "n_best", "max_answer_tokens", low=1)

    def examples(self, data: DataConfig, split: str, labels: Sequence[str] = ()) -> list[Example]:
        """Return {id, text, text_pair, answers, span, group} of each question; see `Task.examples`.

        `text` is the question, `text_pair` the context. `answers` are the right texts, () where
        there is none, None in a split without. `span` is (begin, end) of the first that stands in
        the context, () where there is no answer, and None where it is not known.
        """
        places: dict[str, str] = {}
        moved: dict[str, int] = {}

        def example(record: Record) -> Example:
            name = self._id(record)
            note_id(places, name, record)
            question = record.columns.get(self.question_column)
            if not (self.skip_unusable and _is_blank(question)):
                question = record.text(self.question_column)
            context = record.text(self.context_column)
            # The questions on a context stay on one side of a split: `group`.
            asked = {"id": name, "text": question, "text_pair": context, "group": context}
            if not record.graded:
                return asked | {"answers": None, "span": None}
            answers = answers_of(record, self.answers_column)
            located = [locate(context, text, start) for text, start in answers]
            moved[name] = sum(place.moved for place in located if place)
            spans = [(place.begin, place.end) for place in located if place]
            span = spans[0] if spans else None if answers else ()
            return asked | {"answers": tuple(text for text, _ in answers), "span": span}

        rows = functools.partial(read_questions, form=data.format)
        questions = read_split(data, split, example, self.answers_column, rows, task=self)
        # Right answers that are kept back may be absent, or lists without any.
        hidden = split == "test" and not any(e["answers"] for e in questions)
        if hidden and (not self.unanswerable or questions[0]["answers"] is None):
            unknown = {"answers": None, "span": None}
            return Examples((e | unknown for e in questions), questions.read)
        self._check(questions, split, places)
        used, notes = _usable(questions, split)
        if count := sum(moved[e["id"]] for e in used):
            total = sum(len(e["answers"]) for e in used)
            notes.append(
                f"{count:,} of {total:,} answers are not where answer_start says, and were moved "
                "to the nearest place where their text stands"
            )
        if notes:
            warnings.warn(f"{split} split: {'; '.join(notes)}", stacklevel=2)
        return Examples(used, questions.read)

    def _id(self, record: Record) -> str:
        name = self.id_column or "id"
        if not self.id_column and name not in record.columns:
            return record.id
        number = integer(record.columns.get(name))
        return record.text(name) if number is None else str(number)

    def _check(self, questions: list[Example], split: str, places: Mapping[str, str]) -> None:
        """Refuse questions without an answer, or whose answer cannot be learnt."""
        without = [e for e in questions if not e["answers"]]
        if without and not self.unanswerable:
            raise DataError(
                f"{places[without[0]['id']]} has no answer, like {len(without):,} of "
                f"{len(questions):,} questions; if questions may have none, set "
                "task.unanswerable=True (as task squad2 does)"
            )
        lost = [e for e in questions if e["span"] is None]
        if lost and split == "train" and not self.skip_unusable:
            raise DataError(
                f"{places[lost[0]['id']]}: the answer {lost[0]['answers'][0]!r} is nowhere in its "
                f"context; mend it, or leave such questions out of training ({len(lost):,} of "
                f"{len(questions):,}) with task.skip_unusable=True"
            )

    def perfect(self, golds: Golds) -> list[Answer]:
        """Return the answers of a model that is right and sure."""
        return [
            Answer(Found(gold[0], gold[0], -1.0) if gold else Found("", "", 1.0), 1.0)
            for gold in golds
        ]

    def postprocess(self, outputs: Mapping[str, Any], examples: Sequence[Example]) -> list[Answer]:
        """Return a `Found` for each question from the windows of its context.

        The null score of a question is the lowest of its windows': any of them may hold the
        answer (Devlin et al., 2018, section 4.3, as BERT's own code has it).
        """
        outputs = {name: np.asarray(array) for name, array in outputs.items()}
        spans: dict[int, list] = {}
        none: dict[int, float] = {}
        windows = best_spans(outputs, self.max_answer_tokens, self.n_best)
        owners, scores = outputs["owner"].tolist(), outputs["none_scores"].tolist()
        for owner, score, best in zip(owners, scores, windows, strict=True):
            spans.setdefault(owner, []).extend(best)
            none[owner] = min(score, none.get(owner, score))
        check_count(spans, examples)
        return [
            self._answer(distinct(spans[number], example["text_pair"], self.n_best), none[number])
            for number, example in enumerate(examples)
        ]

    def _answer(self, best: list[tuple[str, float]], none: float) -> Answer:
        """Return the answer, given the best texts with their scores, and the score of none."""
        scores = [score for _, score in best] + [none] * (self.unanswerable or not best)
        chances = softmax(scores).tolist()
        candidate, top = best[0] if best else ("", none)
        withheld = self.unanswerable and none - top > self.null_threshold
        text = "" if withheld else candidate
        texts = tuple((text, chance) for (text, _), chance in zip(best, chances, strict=False))
        score = chances[0] if text else chances[-1]
        return Answer(Found(text, candidate, none - top, texts), score)

    def metrics(self, answers: Sequence[Answer], golds: Golds) -> dict[str, float]:
        """Return the scores of `measures`; where some questions have no answer, more.

        That is the best of each that any `null_threshold` gives, and `best_threshold`, F1's.
        """
        scores = super().metrics(answers, golds)
        answerable = has_answer(golds)
        if self.unanswerable and 0 < answerable.sum() < len(answerable):
            values = span_values([a.value.candidate for a in answers], golds, style=self.style)
            odds = [answer.value.null_odds for answer in answers]
            for name, column in values.items():
                scores[f"best_{name}"], threshold = best_threshold(column, answerable, odds)
            scores["best_threshold"] = threshold
        return scores

    def measures(self, answers: Sequence[Answer], golds: Golds) -> list[Measure]:
        """Return exact match and F1; see `span_measures`."""
        return span_measures([answer.value.text for answer in answers], golds, style=self.style)

    def mistake(self, answer: Answer, gold: tuple[str, ...]) -> float:
        """Return 1 − F1."""
        return 1.0 - float(span_values([answer.value.text], [gold], style=self.style)["f1"][0])

    def files(self, answers: Answers, examples: Examples, labels: Labels = ()) -> dict[str, str]:
        """Return {id: answer}, the best with their probabilities, and null odds, as SQuAD reads."""
        contents: dict[str, dict] = {"submission.json": {}, "n_best.json": {}}
        contents |= {"null_odds.json": {}} if self.unanswerable else {}
        for example, (value, *_) in zip(examples, answers, strict=True):
            best = [{"text": text, "probability": round(share, 6)} for text, share in value.best]
            row = value.text, best, round(value.null_odds, 6)
            for file, entry in zip(contents.values(), row, strict=False):
                file[example["id"]] = entry
        return {
            name: json.dumps(entries, ensure_ascii=False, indent=1) + "\n"
            for name, entries in contents.items()
        }

    def show(self, value: Found | tuple[str, ...], labels: Sequence[str] = ()) -> str | list[str]:
        """Return an answer's text, or the different right ones."""
        return value.text if isinstance(value, Found) else list(dict.fromkeys(value))


def _is_blank(value: Any) -> bool:
    return isinstance(value, str) and not value.strip()


def _usable(questions: list[Example], split: str) -> tuple[list[Example], list[str]]:
    """Return the questions that are used in a split, and what is to be said of the others."""
    empty = [e["id"] for e in questions if _is_blank(e["text"])]
    lost = [e["id"] for e in questions if e["span"] is None]
    kinds = {"are empty": empty, "have no answer that stands in their context": lost}
    training = split == "train"
    fate = "they are left out" if training else "they are answered and scored all the same"
    notes = [
        f"{len(ids):,} of {len(questions):,} questions {what}: {fate}"
        for what, ids in kinds.items()
        if ids
    ]
    used = [e for e in questions if not training or e["id"] not in {*empty, *lost}]
    if not used:
        raise DataError(f"the train split is empty: {'; '.join(notes)}")
    return used, notes


@dataclasses.dataclass(frozen=True)
class Squad2(QuestionAnswering):
    """SQuAD v2.0 (Rajpurkar et al., 2018): half of the questions have no answer."""

    unanswerable: bool = True


@dataclasses.dataclass(frozen=True)
class Cmrc2018(QuestionAnswering):
    """CMRC 2018 (Cui et al., 2019): Chinese, with longer answers."""

    max_answer_tokens: int = 64
    style: str = "cmrc"
