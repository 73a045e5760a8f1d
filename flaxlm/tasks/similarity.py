"""How alike two texts are, by the cosine of their vectors (a bi-encoder).

A cross-encoder, which reads both together, is the task `regression` with a `pair_column`.
"""

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from typing import ClassVar

from flaxlm.data.sources import DataConfig
from flaxlm.errors import DataError, choose
from flaxlm.tasks.records import Record, read_split
from flaxlm.tasks.regression import NumberTask
from flaxlm.tasks.task import Example, Examples, TableTask

PAIRS = ("scored", "given")


@dataclasses.dataclass(frozen=True)
class Similarity(TableTask, NumberTask):
    """Rows of a table with two texts and how alike they are.

    It is trained on pairs that belong together, and judged by the rank correlation of cosines with
    the scores of all pairs.

    Attributes:
      text_column, pair_column: the two texts.
      score_column: how alike they are, on any scale.
      threshold: the score from which on two texts belong together.
      pairs: what is trained on: `scored`, the pairs of the train split with such a score; `given`,
        all of them, and their score is not read.
    """

    text_column: str = "sentence1"
    pair_column: str = "sentence2"
    score_column: str = "score"
    threshold: float = 4.0
    pairs: str = "scored"

    objective: ClassVar[str] = "in_batch"
    # Cosines and scores have units of their own: their difference means nothing.
    scored: ClassVar[tuple[str, ...]] = ("spearman", "pearson")
    defaults: ClassVar[Mapping] = {"eval": {"metric": "spearman", "mode": "max"}}

    def __post_init__(self):
        choose("task.pairs", self.pairs, PAIRS)

    def examples(self, data: DataConfig, split: str, labels: Sequence[str] = ()) -> list[Example]:
        """Return {id, text, text_pair, score, label} for each row of a split.

        `label` is 1 for two texts that belong together; in the train split there are no others.
        """
        training = split == "train"
        given = training and self.pairs == "given"

        def example(record: Record) -> Example:
            found = {
                "id": record.id,
                "text": record.text(self.text_column),
                "text_pair": record.text(self.pair_column),
            }
            score = None if given else record.number(self.score_column)
            label = None if score is None else int(score >= self.threshold)
            return found | {"score": score, "label": 1 if given else label}

        found = read_split(data, split, example, self.score_column, task=self)
        if training:
            total = len(found)
            found = Examples((e for e in found if e["label"]), found.read)
            if not found:
                raise DataError(
                    f"none of the {total} training pairs has a score of task.threshold="
                    f"{self.threshold} or more; lower it, or set task.pairs='given'"
                )
            if len(found) < total:
                warnings.warn(
                    f"{len(found)} of {total} training pairs have a score of task.threshold="
                    f"{self.threshold} or more; the others are left out",
                    stacklevel=1,
                )
        return found

    def mistake(self, answer, gold: float) -> float:
        """Return how much two texts that belong together are apart, or the cosine of others."""
        return 1.0 - answer.value if gold >= self.threshold else max(0.0, answer.value)
