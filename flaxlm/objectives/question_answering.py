"""Find the answer to a question in a text: where it begins and where it ends.

Dimension key: B batch, L length, n tokens of a context, W windows.
"""

import dataclasses
from typing import ClassVar

import jax
import numpy as np

from flaxlm.data.order import ExamplePlan, RowRandom
from flaxlm.data.vocabulary import Frame, Template
from flaxlm.objectives import supervised
from flaxlm.objectives.objective import Objective, Spec, between, floats, ints
from flaxlm.progress import Progress


@dataclasses.dataclass(frozen=True)
class QuestionAnswering(Objective):
    """Point at the first and the last token of the answer (Devlin et al., 2018, section 4.2).

    An encoder reads its tokenizer's template around question and context, a decoder
    `BOS question EOS context EOS`. A context that is longer than a row stands in several windows
    of it. Where a window does not hold the answer, both pointers are on the first token or, where
    that says nothing (a decoder's has seen nothing, a template may have none), on the last.

    Attributes:
      stride: context tokens from the beginning of a window to that of the next.
      question_length: most tokens of a question; what is longer is cut at its end.
      negatives: share of the windows without the answer that is trained on, where the question has
        one; which ones depends on the seed.
      model: the key of MODELS that rows are laid out for; `for_model` sets it.
    """

    stride: int = 128
    question_length: int = 64
    negatives: float = 1.0
    model: str = "encoder"

    name: ClassVar[str] = "question_answering"
    perplexity_of: ClassVar[str] = ""
    models: ClassVar[dict] = {
        "encoder": {"question_answering": 0},
        "decoder": {"question_answering": 0},
    }

    def __post_init__(self):
        super().__post_init__()
        limits = {"stride": (1, 2**20), "question_length": (1, 2**20), "negatives": (0.0, 1.0)}
        between(self, **limits)

    def for_model(self, model_name: str) -> "QuestionAnswering":
        """Return this objective with its rows laid out for a model of MODELS."""
        self.heads(model_name)
        return dataclasses.replace(self, model=model_name)

    def batch_spec(self, batch_size: int, length: int) -> Spec:
        """Return the row's arrays [B, L], and of each row [B] what it answers.

        `labels` [B, 2] are columns; `none` is the column that says that there is no answer here.
        `begins` is 1 + the character of the context that an answer beginning at a token begins at
        (0: none may), `ends` the one behind an answer that ends there; `owner` is the question.
        """
        row, one = (batch_size, length), (batch_size,)
        spec = ints(tokens=row, segment_ids=row)
        if self.model == "encoder":
            spec |= ints(token_types=row)
        spec |= ints(begins=row, ends=row, labels=(batch_size, 2), none=one, owner=one)
        return spec | floats(weights=one) | ints(example_ids=one)

    def frame(self, tokenizer) -> Frame:
        """Return the special tokens around question and context."""
        if self.model == "encoder":
            return tokenizer.template.pair
        return Template.of([tokenizer.bos_id], [tokenizer.eos_id], [tokenizer.eos_id]).pair

    def plan(self, source, length: int, tokenizer, *, seed: int, shuffle: bool) -> ExamplePlan:
        """Return the order of the windows of examples with `text`, `text_pair` and `span`.

        `span` is (begin, end) of the answer in the characters of the context, () where there is
        none, and None where it is not known: then the example has no part in the loss. In
        training it must be known. `report` counts examples, windows, the questions that were cut,
        and windows that `negatives` leaves out.
        """
        frame = self.frame(tokenizer)
        self._check(frame, length)
        questions = supervised.encode(tokenizer, supervised.column(source, "text", str))
        contexts = supervised.column(source, "text_pair", str)
        if shuffle:
            supervised.column(source, "span", tuple)
        report = {"examples": len(source), "windows": 0, "dropped": 0}
        report["truncated"] = sum(len(question) > self.question_length for question in questions)
        rows: dict[str, list] = {"text": [], "types": [], "begins": [], "ends": []}
        columns: dict[str, list] = {"labels": [], "none": [], "owner": [], "weights": []}
        encoded = {}  # questions share contexts
        quiet = jax.process_index() != 0
        with Progress("read", len(source), unit="questions", quiet=quiet) as progress:
            for number, (question, context) in enumerate(zip(questions, contexts, strict=True)):
                if context not in encoded:
                    encoded[context] = tokenizer.encode_with_offsets(context)
                ids, places = encoded[context]
                example = source[number]
                answer = _tokens_of(example, places, shuffle)
                question = question[: self.question_length]
                room = length - frame.size - len(question)
                starts = windows(len(ids), room, self.stride)
                chosen = most_context(starts, len(ids), room)
                keep = np.ones(len(starts), bool)
                if shuffle and self.negatives < 1 and len(answer or ()):
                    holds = (starts <= answer[0]) & (answer[1] < starts + room)
                    drawn = RowRandom(seed, np.array([number])).uniform("negatives", len(starts))
                    keep = holds | (drawn[0] < self.negatives)
                    report["dropped"] += int(np.count_nonzero(~keep))
                for window in np.flatnonzero(keep):
                    first = int(starts[window])
                    stop = min(first + room, len(ids))
                    row, types = frame.around(question, ids[first:stop])
                    at = len(frame.specials[0]) + len(question) + len(frame.specials[1])
                    none = 0 if self._first(frame) else len(row) - 1
                    begins, ends = np.zeros((2, len(row)), np.int32)
                    span = places[first:stop]
                    real = span[:, 0] < span[:, 1]
                    best = real & (chosen[first:stop] == window)
                    begins[at : at + stop - first] = np.where(best, span[:, 0] + 1, 0)
                    ends[at : at + stop - first] = np.where(real, span[:, 1], 0)
                    label = (none, none)
                    if len(answer or ()) and first <= answer[0] and answer[1] < stop:
                        label = (at + answer[0] - first, at + answer[1] - first)
                    for name, values in zip(rows, (row, types, begins, ends), strict=True):
                        rows[name].append(values)
                    facts = (label, none, number, float(answer is not None))
                    for name, value in zip(columns, facts, strict=True):
                        columns[name].append(value)
                progress.update(number + 1)
        if self.model != "encoder":
            del rows["types"]
        report["windows"] = len(rows["text"])
        sequences = {name: supervised.flat(values, length) for name, values in rows.items()}
        arrays = {
            name: np.array(values, np.float32 if name == "weights" else np.int32)
            for name, values in columns.items()
        }
        return ExamplePlan(sequences, arrays, seed, shuffle, report)
