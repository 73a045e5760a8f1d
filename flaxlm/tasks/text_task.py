"""What the tasks have in common that are answered with a text: references, scores, languages."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from flaxlm.errors import ConfigError, DataError, choose
from flaxlm.metrics.measure import Measure
from flaxlm.metrics.texts import (
    CORPUS_SCORES,
    LANGUAGES,
    TEXT_SCORES,
    check_language,
    exact_match,
    text_measures,
)
from flaxlm.tasks.records import Record
from flaxlm.tasks.task import Answer, Example, Examples, Task, check_count, values_of

References = str | list[str]


@dataclasses.dataclass(frozen=True)
class TextTask(Task):
    """A text for each example, judged by one reference text or by several.

    An example's `target` is what is learnt; where there are several right texts, `references` has
    them all, the target first.

    Attributes:
      scored_by: the metrics: rouge_1, rouge_2, rouge_l, exact_match, f1, bleu, chrf.
      language: how texts fall into words for them: `en`, `zh`, or '' for any other.
    """

    scored_by: tuple[str, ...] = ("rouge_l", "exact_match")
    language: str = "en"

    objective: ClassVar[str] = "text_to_text"

    def __post_init__(self):
        choose("task.language", self.language, LANGUAGES)
        for name in self.scored_by:
            choose("task.scored_by", name, (*TEXT_SCORES, *CORPUS_SCORES))
        if not self.scored_by:
            raise ConfigError(
                f"task.scored_by is empty; name some of {', '.join((*TEXT_SCORES, *CORPUS_SCORES))}"
            )

    def checked(self, examples: Examples) -> Examples:
        """Return the examples, if the metrics can read their references; DataError if not."""
        known = [gold for gold in self.golds(examples) if gold is not None]
        if known:
            check_language(known, self.language)
        return examples

    def golds(self, examples: Sequence[Example]) -> list[References | None]:
        """Return the reference text of each example, a list of them where there are several."""
        return [example.get("references") or example["target"] for example in examples]

    def perfect(self, golds: Sequence[References]) -> list[Answer]:
        """Return each example's first reference."""
        return [Answer(gold if isinstance(gold, str) else gold[0], 0.0) for gold in golds]

    def postprocess(self, outputs: Mapping[str, Any], examples: Sequence[Example]) -> list[Answer]:
        """Return outputs['text'] [N], the generated texts, without white space around them.

        The score is their log-likelihood in nats, where outputs have it.
        """
        check_count(outputs["text"], examples)
        sure = outputs.get("log_likelihood", [math.nan] * len(examples))
        pairs = zip(outputs["text"], sure, strict=True)
        return [Answer(str(text).strip(), float(score)) for text, score in pairs]

    def measures(self, answers: Sequence[Answer], golds: Sequence[References]) -> list[Measure]:
        """Return the measure of each of `scored_by`, over all references."""
        return text_measures(values_of(answers), golds, self.scored_by, self.language)

    def mistake(self, answer: Answer, gold: References) -> float:
        """Return 1 − ROUGE-L in words of any language, 0 for a reference itself."""
        texts, golds = [answer.value], [gold]
        if exact_match(texts, golds)[0]:
            return 0.0
        return 1.0 - float(TEXT_SCORES["rouge_l"](texts, golds, "")[0])


def texts_of(record: Record, column: str) -> list[str]:
    """Return the texts of a column that holds one, or a list of them; DataError where it does not.

    An empty list is an error like an empty text.
    """
    value = record.columns.get(column)
    if not isinstance(value, list):
        return [record.text(column)]
    if not value:
        raise DataError(f"{record.place}: column {column!r} is an empty list; drop the row")
    return [dataclasses.replace(record, columns={column: one}).text(column) for one in value]


def learnt(texts: Sequence[str] | None) -> Example:
    """Return {target, references?} of an example's right texts; None: they are not known."""
    if texts is None:
        return {"target": None}
    return {"target": texts[0]} | ({"references": list(texts)} if len(texts) > 1 else {})
