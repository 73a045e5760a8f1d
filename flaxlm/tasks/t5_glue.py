"""GLUE as T5 puts it into words (Raffel et al., 2020, appendix D), for models that write text."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from flaxlm.data.sources import DataConfig
from flaxlm.errors import choose
from flaxlm.metrics.labels import classification_measure
from flaxlm.metrics.measure import Measure, mean_measure
from flaxlm.metrics.numbers import regression_measure
from flaxlm.tasks.glue import GLUE, Glue, Stsb
from flaxlm.tasks.task import Answer, Answers, Example, Examples, Labels, Task
from flaxlm.tasks.text_to_text import written

# How each set is asked.
PAIR = "sentence1: {text} sentence2: {text_pair}"
WORDING = {
    "cola": "cola sentence: {text}",
    "sst2": "sst2 sentence: {text}",
    "mrpc": f"mrpc {PAIR}",
    "stsb": f"stsb {PAIR}",
    "qqp": "qqp question1: {text} question2: {text_pair}",
    "mnli": "mnli hypothesis: {text_pair} premise: {text}",
    "mnli_mm": "mnli hypothesis: {text_pair} premise: {text}",
    "qnli": "qnli question: {text} sentence: {text_pair}",
    "rte": f"rte {PAIR}",
    "wnli": f"wnli {PAIR}",
}
STEP = 0.2  # numbers are learnt as the nearest multiple of it


@dataclasses.dataclass(frozen=True)
class T5Glue(Task):
    """A set of GLUE, from the files that the task of its own name reads, as text to text.

    The answer is read back from the text, a label's word or a number. One that is neither counts
    as wrong (another label, or the end of the scale that is further away), and the score
    `unparsed` is the share of them. An answer's value is a label's id, a number, or such a text.
    """

    set: str = "cola"  # a row of `flaxlm.tasks.glue.GLUE`
    skip_bad_rows: bool = False  # see `flaxlm.tasks.glue.Glue`

    objective: ClassVar[str] = "text_to_text"
    defaults: ClassVar[Mapping] = {"objective": {"target_length": 16}}

    def __post_init__(self):
        choose("task.set", self.set, WORDING)

    @property
    def words(self) -> tuple[str, ...]:
        """The words for the labels, in the order of their ids; none where numbers are asked for."""
        return tuple(self.glue.published.values()) or self._labels

    @property
    def glue(self) -> Glue:
        """The task that reads the set's files."""
        return GLUE[self.set](skip_bad_rows=self.skip_bad_rows)

    @property
    def _labels(self) -> tuple[str, ...]:
        return self.glue.defaults.get("objective", {}).get("labels", ())

    def examples(self, data: DataConfig, split: str, labels: Sequence[str] = ()) -> list[Example]:
        """Return the set's examples, `text` and `target` in T5's words; see `Task.examples`."""
        examples = self.glue.examples(data, split, self._labels)
        for example, gold in zip(examples, self.golds(examples), strict=True):
            pair = {"text": example["text"], "text_pair": example.pop("text_pair", None)}
            example["text"] = WORDING[self.set].format(**pair)
            example["target"] = None if gold is None else self.say(gold)
        return examples

    def say(self, gold: int | float) -> str:
        """Return the text of a label or a number."""
        return self.words[gold] if self.words else f"{round(gold / STEP) * STEP:.1f}"

    def read(self, text: str) -> int | float | str:
        """Return the label or the number that a text says, or the text itself if it says none."""
        if self.words:
            return self.words.index(text) if text in self.words else text
        try:
            return float(text) if math.isfinite(float(text)) else text
        except ValueError:
            return text

    def golds(self, examples: Sequence[Example]) -> list[int | float | None]:
        """Return the label id or the number of each example."""
        return self.glue.golds(examples)

    def postprocess(self, outputs: Mapping[str, Any], examples: Sequence[Example]) -> list[Answer]:
        """Return what each of outputs['text'] [N] says; see `read`."""
        return [Answer(self.read(text), score) for text, score, _ in written(outputs, examples)]

    def _graded(self, answers: Sequence[Answer], golds: Sequence) -> tuple[list, list[float]]:
        """Return the answers with a wrong one for each that says nothing, and where those are."""

        def wrong(gold):
            if self.words:
                return (gold + 1) % len(self.words)
            return Stsb.high if gold < (Stsb.low + Stsb.high) / 2 else Stsb.low

        unparsed = [isinstance(answer.value, str) for answer in answers]
        rows = zip(answers, golds, unparsed, strict=True)
        values = [wrong(gold) if failed else answer.value for answer, gold, failed in rows]
        return values, list(map(float, unparsed))

    def measures(self, answers: Sequence[Answer], golds: Sequence) -> list[Measure]:
        """Return the measures that GLUE gives for the set, and `unparsed`."""
        values, unparsed = self._graded(answers, golds)
        if self.words:
            measure = classification_measure(values, golds, classes=len(self.words))
        else:
            measure = regression_measure(values, golds)
        return [measure.only(self.glue.reported), mean_measure("unparsed", unparsed)]

    def mistake(self, answer: Answer, gold: int | float) -> float:
        """Return 1 for a wrong label, and of a number the error."""
        (value,), _ = self._graded([answer], [gold])
        return float(value != gold) if self.words else abs(value - gold)

    def show(self, value: Any, labels: Sequence[str] = ()) -> Any:
        """Return a label's word, a number, or the text that is neither."""
        return self.words[value] if self.words and isinstance(value, int) else value

    def files(self, answers: Answers, examples: Examples, labels: Labels = ()) -> dict[str, str]:
        """Return the file that GLUE scores; what says nothing is the first label, or 0."""
        said = [Answer(0 if isinstance(a.value, str) else a.value) for a in answers]
        return self.glue.files(said, examples, self._labels)
