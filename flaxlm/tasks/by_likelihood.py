"""Tasks that nothing is trained for: answered by which of several texts a model finds likelier."""

import abc
import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
from scipy.special import softmax

from flaxlm.data.sources import DataConfig
from flaxlm.errors import ConfigError, check_range
from flaxlm.inference.requests import Reader, Request, Scores
from flaxlm.metrics.measure import Measure, mean_measure
from flaxlm.tasks.records import ExampleOf, read_split
from flaxlm.tasks.task import Answer, Example, Examples, Task, check_count


class Gold(NamedTuple):
    """What is right ('' where nothing is), and the `column=value` groups that an example is of."""

    value: Any
    groups: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Ranked(Task, abc.ABC):
    """Base of the tasks that are answered by likelihoods."""

    max_length: int = 0  # most tokens to read, contexts are cut to fit; 0: all positions

    ranks: ClassVar[bool] = True
    defaults: ClassVar[Mapping] = {"data": {"split": "whole"}}

    def __post_init__(self):
        check_range("task", self, "max_length")

    @abc.abstractmethod
    def requests(self, examples: Sequence[Example], reader: Reader) -> list[list[Request]]:
        """Return what a model is asked about each example."""

    @abc.abstractmethod
    def answer(self, example: Example, scores: Scores, masked: bool) -> Answer:
        """Return the answer that the scores of an example's requests amount to."""

    @abc.abstractmethod
    def values(self, answers: Sequence[Answer], golds: Sequence[Gold]) -> dict[str, np.ndarray]:
        """Return {metric: a number for each example}, whose means are the scores."""

    def golds(self, examples: Sequence[Example]) -> list[Gold | None]:
        """Return the right answer and the groups of each example; None where it is not known."""
        return [
            None if e.get("gold", "") is None else Gold(e.get("gold"), e.get("groups", ()))
            for e in examples
        ]

    def postprocess(self, outputs: Mapping[str, Any], examples: Sequence[Example]) -> list[Answer]:
        """Return the answer of each example.

        outputs['scores'] are the `Scores` of each, outputs['masked'] whether masks were filled.
        """
        check_count(outputs["scores"], examples)
        pairs = zip(examples, outputs["scores"], strict=True)
        return [self.answer(example, scores, outputs["masked"]) for example, scores in pairs]

    def measures(self, answers: Sequence[Answer], golds: Sequence[Gold]) -> list[Measure]:
        """Return the mean of each of `values`, over all examples and over each group of them."""
        columns = self.values(answers, golds)
        return [
            mean_measure(name + ending, values[members])
            for ending, members in members_of(golds).items()
            for name, values in columns.items()
        ]

    def show(self, value: Any, labels: Sequence[str] = ()) -> Any:
        """Return an answer's or a gold's value as JSON that a person can read."""
        return value.value if isinstance(value, Gold) else value


def members_of(golds: Sequence[Gold]) -> dict[str, list[int]]:
    """Return {what a score's name ends in: numbers of examples}: '' for all, and each group."""
    members: dict[str, list[int]] = {"": list(range(len(golds)))}
    for number, gold in enumerate(golds):
        for group in gold.groups:
            members.setdefault(f"/{group}", []).append(number)
    return dict(sorted(members.items()))


def preferred(log_likelihoods: Sequence[float]) -> tuple[int, np.ndarray]:
    """Return the likeliest of some texts, the first of equal ones, and the share [C] of each."""
    values = np.asarray(log_likelihoods, np.float64)
    return int(np.argmax(values)), softmax(values)


@dataclasses.dataclass(frozen=True)
class Prompted(Ranked):
    """Base of the tasks that may be shown solved examples first (Brown et al., 2020)."""

    instruction: str = ""  # text before everything else
    shots: int = 0  # how many solved examples stand before the one to be answered
    shots_path: str = ""  # the file that they are taken from; '' for the other examples themselves
    seed: int = 0  # with an example's file name and line it decides its shots
    separator: str = "\n\n"  # between shots
    joint: str = " "  # between a context and what follows it; '' for text without spaces

    def __post_init__(self):
        super().__post_init__()
        check_range("task", self, "shots")
        if self.shots_path and not self.shots:
            raise ConfigError("task.shots_path names solved examples, and task.shots asks for none")

    def prompted(
        self, data: DataConfig, split: str, example: ExampleOf, gold: str = ""
    ) -> Examples:
        """Return the examples of a split, solved ones put before the `text` of each: its `prefix`.

        `example` makes one of a row: `text` is its context, `solved` what belongs behind; `gold` is
        as in `read_split`.
        """
        examples = pool = read_split(data, split, example, gold, task=self)
        if self.shots_path:
            shown = dataclasses.replace(
                data, path=self.shots_path, split="whole", valid_path="", test_path="", weights=()
            )
            pool = read_split(shown, "train", example, task=self)
        pool = [shot for shot in pool if shot.get("gold", "") is not None]
        # An example's own context is never shown, whichever row it stands in.
        contexts = {shot["text"] for shot in pool}
        if self.shots and len(contexts) <= self.shots:
            raise ConfigError(
                f"task.shots={self.shots} needs more solved examples with contexts of their own "
                f"than the {len(contexts)} of {self.shots_path or ', '.join(data.paths)}"
            )
        for asked in examples:
            shots = self._shots(asked, pool)
            solved = (shot["text"] + self.joint + shot["solved"] for shot in shots)
            parts = [part + self.separator for part in (self.instruction, *solved) if part]
            asked["prefix"] = "".join(parts)
        return Examples((e | {"text": e["prefix"] + e["text"]} for e in examples), examples.read)

    def _shots(self, example: Example, pool: Sequence[Example]) -> Iterator[Example]:
        """Yield the shots of an example: draw n is a function of (seed, id, n) alone."""
        name = example["id"]
        seen, draw = {example["text"]}, 0
        while len(seen) <= self.shots:
            digest = hashlib.blake2b(f"{self.seed} {name} {draw}".encode(), digest_size=8).digest()
            shot = pool[int.from_bytes(digest, "little") % len(pool)]
            if shot["text"] not in seen:
                seen.add(shot["text"])
                yield shot
            draw += 1
