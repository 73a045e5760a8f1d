"""A tag for each word: named entities and parts of speech."""

import dataclasses
import functools
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np

from flaxlm.data.sources import DataConfig
from flaxlm.errors import ConfigError, DataError, choose
from flaxlm.metrics.entities import SCHEMES, check_labels, entities, entity_measure, tag_measure
from flaxlm.metrics.measure import Measure
from flaxlm.tasks import conll
from flaxlm.tasks.labels import LabelIds, label_ids, label_text
from flaxlm.tasks.records import Reader, Record, count_labels, read_split
from flaxlm.tasks.task import Answer, Answers, Decisions, Example, Labels, Task, values_of

# Derczynski et al. (2017).
WNUT17_TYPES = ("corporation", "creative-work", "group", "location", "person", "product")
# Universal Dependencies, version 2 (Nivre et al., 2020).
UPOS = (
    *("ADJ", "ADP", "ADV", "AUX", "CCONJ", "DET", "INTJ", "NOUN", "NUM", "PART", "PRON", "PROPN"),
    *("PUNCT", "SCONJ", "SYM", "VERB", "X"),
)


class Tagged(NamedTuple):
    """Words and the tag of each."""

    words: tuple[str, ...]
    tags: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Tagging(Task):
    """A tag for each word of the sentences of CoNLL, CoNLL-U or JSONL files and other tables."""

    word_column: str = ""  # see `conll.read`
    tag_column: str = ""  # see `conll.read`
    spaces: str = "auto"  # whether one parts two words: `auto`, `always`, `never`; see `conll.read`

    objective: ClassVar[str] = "token_classification"
    labels_key: ClassVar[str] = "tag_column"

    def __post_init__(self):
        choose("task.spaces", self.spaces, conll.SPACES)

    def check(self, labels: Sequence[str]) -> None:
        """Raise ConfigError where the labels cannot be the tags of this task."""

    def examples(self, data: DataConfig, split: str, labels: Sequence[str] = ()) -> list[Example]:
        """Return {id, text, words, tags, tag_set} for each sentence of a split.

        `words` are as `conll.read` gives them, `tags` their ids or None, `tag_set` all the tags by
        id; see `Task.examples`.
        """
        labels = tuple(labels)
        ids = label_ids(labels)
        self.check(labels)

        def example(record: Record) -> Example:
            words = record.columns["words"]
            tags = _tag_ids(record, ids) if record.graded else None
            sentence = {"id": record.id, "text": "".join(words), "words": words}
            return sentence | {"tag_set": labels, "tags": tags}

        return read_split(data, split, example, "tags", self._reader(data), task=self)

    def _reader(self, data: DataConfig) -> Reader:
        fields = ("word_column", "tag_column", "spaces")
        columns = {name: getattr(self, name) for name in fields}
        return functools.partial(conll.read, form=data.format, **columns)

    def label_counts(self, data: DataConfig) -> dict[str, int]:
        """Return how often each tag stands in the training sentences; none if they are numbers."""
        guesses = []

        def example(record: Record) -> Example:
            columns = record.columns
            guesses.append(columns["guess"])
            return {"text": "".join(columns["words"]), "names": columns.get("tags", ())}

        counts = count_labels(data, example, self._reader(data), self)
        # Of text in lines of equally many words the last ones are many, and no line is blank.
        if any(guesses) and (len(guesses) == 1 or 2 * len(counts) > sum(counts.values())):
            read = ", ".join(map(repr, list(counts)[:5]))
            warnings.warn(
                f"tags are {read}{', …' * (len(counts) > 5)}: {max(guesses)}; data.format='conll' "
                "says that it is CoNLL",
                stacklevel=1,
            )
        return counts if all(isinstance(tag, str) for tag in counts) else {}

    def golds(self, examples: Sequence[Example]) -> list[Tagged | None]:
        """Return each sentence with its right tags."""
        return [None if e["tags"] is None else _tagged(e, e["tags"]) for e in examples]

    def postprocess(self, outputs: Mapping[str, Any], examples: Sequence[Example]) -> list[Answer]:
        """Return each sentence with its likeliest tags, joined from its windows.

        `outputs` are of `objectives.TokenClassification.predict`. DataError where a word was not
        tagged exactly once.
        """
        sizes = np.array([len(example["words"]) for example in examples])
        first = np.cumsum(sizes) - sizes
        rows, columns = np.nonzero(outputs["words"])
        owners = np.asarray(outputs["owner"])[rows]
        numbers = np.asarray(outputs["words"])[rows, columns] - 1
        times = np.bincount(first[owners] + numbers, minlength=sizes.sum())
        if len(times) != sizes.sum() or (times != 1).any():
            at = int(np.argmax(times != 1))
            example = int(np.searchsorted(first, at, "right")) - 1
            raise DataError(
                f"word {at - first[example] + 1} of example {examples[example]['id']} was tagged "
                f"{times[at]} times; there must be one output for each word"
            )
        order = np.argsort(first[owners] + numbers)
        scores = np.asarray(outputs["scores"], np.float64)[rows[order], columns[order]]
        answers = []
        for example, scores_NC in zip(examples, np.split(scores, first[1:]), strict=True):
            best = _tagged(example, scores_NC.argmax(axis=-1))
            answers.append(Answer(best, float(scores_NC.max(axis=-1).sum()), np.exp(scores_NC)))
        return answers

    def decisions(self, answers: Answers, golds: Sequence[Tagged], labels: Labels) -> Decisions:
        """Return the tag of each word."""
        ids = label_ids(labels)
        return Decisions(
            np.array([ids[tag] for gold in golds for tag in gold.tags]),
            np.array([ids[tag] for answer in answers for tag in answer.value.tags]),
            np.concatenate([answer.scores for answer in answers]),
        )

    def show(self, value: Tagged, labels: Sequence[str] = ()) -> list[list[str]]:
        """Return pairs of word and tag."""
        return [list(pair) for pair in zip(*value, strict=True)]


def _tagged(example: Example, ids: Sequence[int]) -> Tagged:
    words = tuple(word.removeprefix(" ") for word in example["words"])
    return Tagged(words, tuple(example["tag_set"][i] for i in ids))


def _tag_ids(record: Record, ids: LabelIds) -> list[int]:
    """Return the id of each tag."""
    if "tags" not in record.columns:
        raise DataError(f"{record.place}: {record.columns['untagged']}")
    tag_ids, place = [], record.place
    for index, tag in enumerate(record.columns["tags"]):
        name = label_text(tag) or str(tag)
        tag_ids.append(ids.find(name, place, "tags"))
        if tag_ids[-1] is None:
            guess = record.columns["guess"]
            raise DataError(
                f"{conll.place_of(record, index)}: tag {tag!r} of the word "
                f"{record.columns['words'][index].strip()!r} is {ids.lack(name)}"
                + (guess and f"; {guess}")
            )
    return tag_ids


def _tags(values: Sequence[Tagged]) -> list[tuple[str, ...]]:
    return [value.tags for value in values]


@dataclasses.dataclass(frozen=True)
class NamedEntities(Tagging):
    """Named entities; `objective.labels` are tags such as `O`, `B-PER`, `I-PER`."""

    scheme: str = "bio"  # of the tags: `bio`, `bioes`, `bmes` or `iob1`

    defaults: ClassVar[Mapping] = {"eval": {"metric": "f1_micro", "mode": "max"}}

    def __post_init__(self):
        super().__post_init__()
        choose("task.scheme", self.scheme.lower(), [scheme.lower() for scheme in SCHEMES])

    def check(self, labels: Sequence[str]) -> None:
        """Raise ConfigError where the labels are not tags of the scheme."""
        try:
            check_labels(labels, self.scheme.upper())
        except ConfigError as error:
            other = task_of_labels(labels).get("scheme", "")
            advice = f"; they are tags of task.scheme={other!r}" if other else ""
            raise ConfigError(f"task.scheme={self.scheme!r}: {error}{advice}") from None

    def measures(self, answers: Sequence[Answer], golds: Sequence[Tagged]) -> list[Measure]:
        """Return precision, recall and F1 of entities, micro and macro; `tag_accuracy` of words."""
        return [entity_measure(_tags(values_of(answers)), _tags(golds), self.scheme.upper())]

    def mistake(self, answer: Answer, gold: Tagged) -> float:
        """Return the number of entities that are missed or made up."""
        answered, right = (
            set(entities(side.tags, self.scheme.upper())) for side in (answer.value, gold)
        )
        return float(len(answered ^ right))


@dataclasses.dataclass(frozen=True)
class PartsOfSpeech(Tagging):
    """Parts of speech, or any other tags that stand by themselves."""

    defaults: ClassVar[Mapping] = {"eval": {"metric": "accuracy", "mode": "max"}}

    def measures(self, answers: Sequence[Answer], golds: Sequence[Tagged]) -> list[Measure]:
        """Return accuracy, and precision, recall and F1, macro over the tags that occur."""
        return [tag_measure(_tags(values_of(answers)), _tags(golds))]

    def mistake(self, answer: Answer, gold: Tagged) -> float:
        """Return the number of wrong tags."""
        return float(sum(a != b for a, b in zip(answer.value.tags, gold.tags, strict=True)))


@dataclasses.dataclass(frozen=True)
class Wnut17(NamedEntities):
    """Emerging entities in posts of social media (Derczynski et al., 2017)."""

    defaults: ClassVar[Mapping] = NamedEntities.defaults | {
        "objective": {"labels": ("O", *(f"{p}-{t}" for t in WNUT17_TYPES for p in "BI"))},
        "data": {"split": "file"},
    }


@dataclasses.dataclass(frozen=True)
class UniversalParts(PartsOfSpeech):
    """Universal parts of speech of a treebank of Universal Dependencies (CoNLL-U)."""

    defaults: ClassVar[Mapping] = PartsOfSpeech.defaults | {
        "objective": {"labels": UPOS},
        "data": {"split": "file"},
    }


def task_of_labels(labels: Sequence[str]) -> dict[str, str]:
    """Return the `task` section for a model of which these are the tags: `ner` if they can be."""
    for scheme in SCHEMES:
        try:
            check_labels(labels, scheme)
        except ConfigError:
            continue
        return {"name": "ner", "scheme": scheme.lower()}
    return {"name": "pos"}
