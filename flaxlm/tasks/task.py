"""What a task is: where its examples come from, and what its answers are worth."""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
from scipy.special import softmax

from flaxlm.data.sources import DataConfig
from flaxlm.errors import ConfigError, DataError
from flaxlm.metrics.labels import calibration_measure, classification_measure
from flaxlm.metrics.measure import Interval, Measure, intervals_of, scores_of

SPLITS = ("train", "valid", "test")

Example = dict[str, Any]


class Examples(list[Example]):
    """The examples of a split, in a fixed order; `read`: how many the files behind it held."""

    def __init__(self, examples: Iterable[Example], read: int):
        super().__init__(examples)
        self.read = read


class Answer(NamedTuple):
    """What a model answers an example with."""

    value: Any  # the answer, of the same kind as a gold
    score: float = math.nan  # how sure the model is, a probability or log-likelihood; NaN: unknown
    scores: Sequence[float] | None = None  # of each label, its probability


Answers = Sequence[Answer]
Labels = Sequence[str]  # by id


class Decisions(NamedTuple):
    """M choices of one label of a set: the right ids, those answered, the probability of each."""

    golds: Sequence[int]
    chosen: Sequence[int]
    scores: np.ndarray  # [M, C]


@dataclasses.dataclass(frozen=True)
class Task:
    """Base of every task; the fields of a task are the `task` section of a config."""

    objective: ClassVar[str] = ""  # of `OBJECTIVES`; '' for any that reads plain text
    ranks: ClassVar[bool] = False  # whether likelihoods answer it, and nothing is trained
    reads_documents: ClassVar[bool] = False  # whether its text is cleaned and split as a corpus
    # What its recipe leaves out of a config: a published set's labels, the metric that decides.
    defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    published: ClassVar[Mapping[str, str]] = {}  # {label: its name}, where labels are numbers
    learns: ClassVar[str] = ""  # under what an example has its right answer
    labels_key: ClassVar[str] = ""  # the key that names the column of the labels
    inputs: ClassVar[Mapping[str, str]] = {"text": "text", "text_pair": "text_pair"}  # as shown

    def examples(self, data: DataConfig, split: str, labels: Sequence[str] = ()) -> list[Example]:
        """Return the examples of a split; `labels` are the names of the classes by id.

        Returns:
          dicts with `id` (file and place), `text`, `text_pair` for a second sentence, and what its
          objective learns: `label` (int, an index into `labels`), `labels` (a truth value for each
          of `labels`), `score` (float) or `target` (str); these are None in a split that has no
          right answers, which can be answered but neither trained on nor scored.

        Raises:
          DataError: a record does not fit; file, line and column are named.
        """
        raise ConfigError(
            f"task {type(self).__name__} has no examples: its corpus is the training text itself"
        )

    def label_counts(self, data: DataConfig) -> dict[str, int]:
        """Return how often each label stands in the train split, for a config that names none."""
        return {}

    def golds(self, examples: Sequence[Example]) -> list:
        """Return the right answer of each example, as `metrics` compares it; None: not known."""
        return [example[self.learns] for example in examples] if self.learns else []

    def perfect(self, golds: Sequence) -> list[Answer]:
        """Return the answers of a model that is right and sure."""
        return [Answer(gold, 1.0) for gold in golds]

    def postprocess(self, outputs: Mapping[str, Any], examples: Sequence[Example]) -> list[Answer]:
        """Return an answer for each example from what the model put out for all of them."""
        return []

    def measures(self, answers: Sequence[Answer], golds: Sequence) -> list[Measure]:
        """Return what the answers of a whole split are judged by."""
        return []

    def metrics(self, answers: Sequence[Answer], golds: Sequence) -> dict[str, float]:
        """Return {name: score} over a whole split."""
        return scores_of(self.measures(answers, golds))

    def intervals(self, answers: Sequence[Answer], golds: Sequence) -> dict[str, Interval]:
        """Return {name: (low, high)}, the 95 % bootstrap interval of each of `measures`."""
        return intervals_of(self.measures(answers, golds))

    def mistake(self, answer: Answer, gold: Any) -> float:
        """Return how wrong an answer is, 0 for a right one: the worst errors are shown."""
        return float(answer.value != gold)

    def decisions(self, answers: Answers, golds: Sequence, labels: Labels) -> Decisions | None:
        """Return the choices among `labels` that the answers consist of; None: of none."""
        return None

    def show(self, value: Any, labels: Sequence[str] = ()) -> Any:
        """Return an answer's or a gold's value as JSON that a person can read."""
        return value

    def show_input(self, example: Example) -> Any:
        """Return what the model was given, as JSON that a person can read."""
        inputs = {name: example[key] for name, key in self.inputs.items() if key in example}
        return inputs if len(inputs) > 1 else example.get("text")

    def files(self, answers: Answers, examples: Examples, labels: Labels = ()) -> dict[str, str]:
        """Return {name: contents} of files in the form that others score, beside the report."""
        return {}


@dataclasses.dataclass(frozen=True)
class Text(Task):
    """Plain text, pre-training: the corpus is the task, for any objective that reads such text."""

    reads_documents: ClassVar[bool] = True


@dataclasses.dataclass(frozen=True)
class TableTask(Task):
    """A task that reads tables."""

    columns: tuple[str, ...] = ()  # names of the columns of a CSV or TSV file that has no header


def check_count(outputs: Sequence, examples: Sequence[Example]) -> None:
    """Raise DataError unless there is one output for each example."""
    if len(outputs) != len(examples):
        raise DataError(f"{len(outputs)} outputs for {len(examples)} examples")


def values_of(answers: Sequence[Answer]) -> list:
    """Return the answers alone."""
    return [answer.value for answer in answers]


@dataclasses.dataclass(frozen=True)
class LabelTask(Task):
    """One of a fixed set of labels for each example."""

    objective: ClassVar[str] = "classification"
    learns: ClassVar[str] = "label"
    defaults: ClassVar[Mapping] = {"eval": {"metric": "accuracy", "mode": "max"}}

    def postprocess(self, outputs: Mapping[str, Any], examples: Sequence[Example]) -> list[Answer]:
        """Return the likeliest label of each example, from outputs['scores'] [N, C].

        They are log-probabilities, those of labels that are written as text up to a constant.
        """
        scores_NC = np.asarray(outputs["scores"], np.float64)
        check_count(scores_NC, examples)
        shares_NC = softmax(scores_NC, axis=-1)
        best_N = np.argmax(scores_NC, axis=-1).tolist()
        rows = zip(best_N, shares_NC, strict=True)
        return [Answer(best, float(shares[best]), shares) for best, shares in rows]

    def perfect(self, golds: Sequence[int]) -> list[Answer]:
        """Return the right labels, with all of the probability."""
        sure_CC = np.eye(max(1, *golds) + 1)
        return [Answer(gold, 1.0, sure_CC[gold]) for gold in golds]

    def measures(self, answers: Sequence[Answer], golds: Sequence[int]) -> list[Measure]:
        """Return the measures of the labels, and of how far their probabilities can be believed."""
        shares_NC = [answer.scores for answer in answers]
        return [
            classification_measure(values_of(answers), golds),
            calibration_measure(shares_NC, golds),
        ]

    def mistake(self, answer: Answer, gold: int) -> float:
        """Return the probability given to a wrong label."""
        return 0.0 if answer.value == gold else answer.score

    def decisions(self, answers: Answers, golds: Sequence[int], labels: Labels) -> Decisions:
        """Return the label of each example."""
        shares_NC = np.array([answer.scores for answer in answers])
        return Decisions(golds, values_of(answers), shares_NC)

    def show(self, value: int, labels: Sequence[str] = ()) -> str | int:
        """Return the label's name."""
        return labels[value] if labels else value
