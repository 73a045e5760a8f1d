"""Questions about a text, answered in the model's own words: SQuAD's JSON, or rows of a table."""

import dataclasses
import functools
from collections.abc import Sequence

from flaxlm.data.sources import DataConfig
from flaxlm.errors import ConfigError, DataError
from flaxlm.metrics.answers import span_measures, span_values
from flaxlm.metrics.measure import Measure
from flaxlm.metrics.texts import text_measures
from flaxlm.tasks.labels import label_text
from flaxlm.tasks.records import Record, read_split
from flaxlm.tasks.squad_json import note_id, read_questions
from flaxlm.tasks.task import Answer, Example, values_of
from flaxlm.tasks.text_to_text import References, TextTask, learnt, texts_of

OWN = ("exact_match", "f1")


@dataclasses.dataclass(frozen=True)
class GenerativeQA(TextTask):
    """Answers to questions about a context, judged as SQuAD's are: exact match and F1.

    Where `language` is `zh` they are compared as CMRC 2018 does. Several answers may be right; the
    first is learnt. The template is T5's (Raffel et al., 2020, appendix D).
    """

    scored_by: tuple[str, ...] = OWN
    context_column: str = "context"  # in a table; SQuAD's JSON has `context`
    question_column: str = "question"  # in a table; SQuAD's JSON has `question`
    answers_column: str = "answers"  # a text, a list of texts, or SQuAD's list of objects
    template: str = "question: {question} context: {context}"  # what the model reads
    no_answer: str = ""  # what is said where a question has no answer; '' if each must have one

    def __post_init__(self):
        super().__post_init__()
        for part in ("{question}", "{context}"):
            if self.template.count(part) != 1:
                raise ConfigError(f"task.template={self.template!r} must hold {part}, once")

    def examples(self, data: DataConfig, split: str, labels: Sequence[str] = ()) -> list[Example]:
        """Return {id, text, target, references?, group} of each question; see `Task.examples`."""
        places: dict[str, str] = {}

        def example(record: Record) -> Example:
            own = record.columns.get("id", record.id)
            name = label_text(own) or str(own)
            note_id(places, name, record)
            context = record.text(self.context_column)
            question = record.text(self.question_column)
            # One pass, so that braces in a question stay what they are.
            before, behind = self.template.split("{question}")
            text = question.join(part.replace("{context}", context) for part in (before, behind))
            # The questions on a context stay on one side of a split: `group`.
            asked = {"id": name, "text": text, "group": context}
            return asked | learnt(self._answers(record) if record.graded else None)

        rows = functools.partial(read_questions, form=data.format)
        return self.checked(read_split(data, split, example, self.answers_column, rows, task=self))

    def _answers(self, record: Record) -> list[str]:
        """Return the right answers, each once."""
        value = record.columns.get(self.answers_column)
        if record.columns.get("is_impossible") is True:
            value = []
        elif isinstance(value, dict):  # as `datasets` has it
            value = value.get("text")
        elif isinstance(value, list):
            value = [one.get("text") if isinstance(one, dict) else one for one in value]
        if value == []:
            if not self.no_answer:
                raise DataError(
                    f"{record.place}: the question has no answer; say what the model should say "
                    "there with task.no_answer, such as 'unanswerable', or drop it"
                )
            return [self.no_answer]
        columns = record.columns if value is None else {self.answers_column: value}
        texts = texts_of(dataclasses.replace(record, columns=columns), self.answers_column)
        return list(dict.fromkeys(texts))

    def measures(self, answers: Sequence[Answer], golds: Sequence[References]) -> list[Measure]:
        """Return exact match and F1 as SQuAD defines them, and what else `scored_by` names.

        Where some questions have no answer, also of either kind, as `span_measures` does.
        """
        texts = values_of(answers)
        own = [name for name in OWN if name in self.scored_by]
        others = [name for name in self.scored_by if name not in OWN]
        return [
            *span_measures(self._spans(texts), self._spans(golds), style=self._style, names=own),
            *text_measures(texts, golds, others, self.language),
        ]

    def mistake(self, answer: Answer, gold: References) -> float:
        """Return 1 − F1, as SQuAD defines it."""
        spans = self._spans([answer.value]), self._spans([gold])
        return 1.0 - float(span_values(*spans, style=self._style)["f1"][0])

    @property
    def _style(self) -> str:
        return "cmrc" if self.language == "zh" else "squad"

    def _spans(self, texts: Sequence[References]) -> list[References]:
        """Return answers or golds as SQuAD's scores take them: '' says that there is none."""
        return ["" if self.no_answer and text == self.no_answer else text for text in texts]
