"""Find the answer to a question in a text: where it begins and where it ends.

Dimension key: B batch, L length; n tokens of a context, w windows of it.
"""

import dataclasses
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flaxlm.data.order import ExamplePlan, Raw, RowRandom
from flaxlm.data.pipeline import Batch
from flaxlm.data.template import Frame
from flaxlm.data.unknown import warn_unknown
from flaxlm.errors import ConfigError, DataError, check_range
from flaxlm.models import losses
from flaxlm.objectives import supervised
from flaxlm.objectives.objective import Spec, Sums, apply, floats, ints
from flaxlm.progress import Progress


class ContextWindow(NamedTuple):
    """A row of question and context: int32 [size] arrays, and an entry of each column."""

    text: np.ndarray
    types: np.ndarray
    begins: np.ndarray
    ends: np.ndarray
    labels: tuple[int, int]
    none: int
    owner: int
    weights: float


@dataclasses.dataclass(frozen=True)
class QuestionAnswering(supervised.Supervised):
    """Point at the first and the last token of the answer (Devlin et al., 2018, section 4.2).

    A context that is longer than a row is read in several windows, each behind the question. Where
    a window does not hold the answer, both pointers are on the first token or, where that has
    nothing to say (a decoder's has seen nothing, a template may have none), on the last. Of such
    windows of a question that has an answer `negatives` are trained on, drawn by the seed.
    """

    stride: int = 128  # context tokens from the beginning of a window to that of the next
    question_length: int = 64  # most tokens of a question; what is longer is cut at its end
    negatives: float = 1.0  # share of the windows without the answer that is trained on

    name: ClassVar[str] = "question_answering"
    head: ClassVar[str] = "question_answering"

    def __post_init__(self):
        super().__post_init__()
        check_range("objective", self, "stride", "question_length", low=1, high=2**20)
        check_range("objective", self, "negatives", high=1)

    def batch_spec(self, batch_size: int, length: int) -> Spec:
        """Return the row's arrays [B, L], and of each row [B] what it answers.

        `labels` [B, 2] are columns; `none` is the column that stands for no answer here. `begins`
        is 1 + the character of the context where an answer that begins with a token begins (0: none
        may), `ends` the character behind an answer that ends with it; `owner` is the question.
        """
        row, one = (batch_size, length), (batch_size,)
        spec = self.row_spec(batch_size, length)
        spec |= ints(begins=row, ends=row, labels=(batch_size, 2), none=one, owner=one)
        return spec | floats(weights=one)

    def plan(self, source, length: int, tokenizer, *, seed: int, shuffle: bool) -> ExamplePlan:
        """Return the order of the windows of examples with `text`, `text_pair` and `span`.

        `span` is (begin, end) of the answer in the characters of the context, () where there is
        none, and None where it is not known: then the example has no part in the loss. In
        training it must be known. `report` counts examples, windows, questions that were cut, and
        windows that `negatives` leaves out.
        """
        frame = self.template(tokenizer).pair
        self._check(frame, length)
        questions = supervised.encode(tokenizer, supervised.column(source, "text", str))
        contexts = supervised.column(source, "text_pair", str)
        if shuffle:
            supervised.column(source, "span", tuple)
        cut = sum(len(question) > self.question_length for question in questions)
        windows, dropped = [], 0
        encoded = {}  # questions share contexts
        quiet = jax.process_index() != 0
        with Progress("read", len(source), unit="questions", quiet=quiet) as progress:
            for number, context in enumerate(contexts):
                if context not in encoded:
                    encoded[context] = tokenizer.encode_with_offsets(context)
                span = source[number].get("span")
                answer = answer_tokens(span, encoded[context][1])
                if shuffle and answer is None:
                    raise DataError(
                        f"{supervised.name_of(source, number)}: the tokenizer leaves nothing of "
                        f"the answer {context[span[0] : span[1]]!r}; leave the question out"
                    )
                question = questions[number][: self.question_length]
                rows = self._windows(frame, question, *encoded[context], answer, length, number)
                total = len(rows)
                if shuffle and answer and self.negatives < 1:
                    random = RowRandom(seed, np.array([number])).uniform("negatives", total)[0]
                    drawn = zip(rows, random < self.negatives, strict=True)
                    rows = [row for row, kept in drawn if kept or row.labels[0] != row.none]
                windows += rows
                dropped += total - len(rows)
                progress.update(number + 1)
        arrays = {name: [getattr(row, name) for row in windows] for name in ContextWindow._fields}
        names = ("text", "begins", "ends", *["types"] * self.traits.bidirectional)
        sequences = {name: supervised.flat(arrays[name], length) for name in names}
        columns = {n: np.array(arrays[n], np.int32) for n in ("labels", "none", "owner")}
        columns["weights"] = np.array(arrays["weights"], np.float32)
        warn_unknown(tokenizer, [ids for ids, _ in encoded.values()], list(encoded))
        report = {"examples": len(source), "windows": len(windows), "truncated": cut}
        return ExamplePlan(sequences, columns, seed, shuffle, report | {"dropped": dropped})

    def _check(self, frame: Frame, length: int) -> None:
        """Refuse rows that leave part of a context out, or that cannot stand for "no answer"."""
        room = length - frame.size - self.question_length
        if room < self.stride:
            raise ConfigError(
                f"objective.stride={self.stride} leaves gaps: beside a question of "
                f"objective.question_length={self.question_length}, a row of train.length={length} "
                f"holds {max(room, 0)} tokens of the context; increase the length, or decrease one "
                "of the others"
            )
        if not frame.specials[0] and not frame.specials[-1]:
            raise ConfigError(
                "the tokenizer puts no special token before or behind a pair of texts, and "
                f"{self.name} needs one to point at where there is no answer"
            )

    def _windows(self, frame: Frame, question, ids, places, answer, length: int, owner: int):
        """Return the rows of a question's ids and a context, its `ids` at `places` [n, 2]."""
        at = len(frame.specials[0]) + len(question) + len(frame.specials[1])
        room = length - frame.size - len(question)
        real = places[:, 0] < places[:, 1]  # white space and the like begins and ends nothing
        spans = context_spans(len(ids), room, self.stride)
        chosen = supervised.best_window(spans, shorter_side)
        windows = []
        for number, (first, stop) in enumerate(spans):
            text, types = frame.around(question, ids[first:stop])
            # A decoder's first token has seen nothing, and says the same whatever the text.
            none = 0 if self.traits.bidirectional and frame.specials[0] else len(text) - 1
            begins, ends = np.zeros((2, len(text)), np.int32)
            here, columns = slice(first, stop), slice(at, at + stop - first)
            mine = real[here] & (chosen[here] == number)
            begins[columns] = np.where(mine, places[here, 0] + 1, 0)
            ends[columns] = np.where(real[here], places[here, 1], 0)
            labels = (none, none)
            if answer and first <= answer[0] and answer[1] < stop:
                labels = (at + answer[0] - first, at + answer[1] - first)
            entries = labels, none, owner, float(answer is not None)
            windows.append(ContextWindow(text, types, begins, ends, *entries))
        return windows

    def preprocess(self, raw: Raw, rng: RowRandom, tokenizer, length: int) -> Batch:
        """Return the batch; nothing in it is random."""
        names = ("begins", "ends", "labels", "none", "owner", "weights")
        return self.row_batch(raw, length) | {name: raw[name] for name in names}

    def logits(self, model, params, batch, rng, train: bool) -> jax.Array:
        """Return float32 [B, 2, L]: for the answer's beginning and end, −∞ in the padding."""
        logits_BL2 = apply(model, params, batch, rng, train)["question_answering"]
        column_1L = jnp.arange(batch["tokens"].shape[1])[None]
        # Filling rows have no real token at all: they keep one, so that their sums are finite.
        real_BL = (batch["segment_ids"] > 0) | (column_1L == 0)
        return jnp.where(real_BL[:, None], jnp.swapaxes(logits_BL2, 1, 2), -jnp.inf)

    def loss(self, model, params, batch, rng, train: bool) -> tuple[Sums, Sums]:
        """Return the term `loss`, the mean of both pointers' in nats, and their accuracy."""
        logits_B2L = self.logits(model, params, batch, rng, train)
        weights_B2 = jnp.broadcast_to(batch["weights"][:, None] / 2, batch["labels"].shape)
        total, weight, correct = losses.cross_entropy(
            logits_B2L, batch["labels"], weights_B2, *self.penalties(train)
        )
        return {"loss": (total, weight)}, {"accuracy": (correct, weight)}

    def predict(self, model, params, batch) -> dict[str, jax.Array]:
        """Return the logits, `begin_scores` and `end_scores` [B, L], and what the batch tells.

        Their sum for no answer is `none_scores` [B].
        """
        logits_B2L = self.logits(model, params, batch, None, False)
        none_B2 = jnp.take_along_axis(logits_B2L, batch["none"][:, None, None], axis=2)[..., 0]
        scores = {"begin_scores": logits_B2L[:, 0], "end_scores": logits_B2L[:, 1]}
        scores["none_scores"] = jnp.sum(none_B2, axis=1)
        return scores | {name: batch[name] for name in ("begins", "ends", "owner")}


def answer_tokens(span: tuple | None, places: np.ndarray) -> tuple[int, int] | tuple[()] | None:
    """Return the first and the last token of a span of characters, given the tokens' [n, 2].

    () where there is no answer; None where it is not known, or where no token covers any of it.
    """
    if not span:
        return span
    begin, end = span
    starts, stops = places.T
    touching = np.flatnonzero((starts < end) & (stops > begin) & (starts < stops))
    return (int(touching[0]), int(touching[-1])) if len(touching) else None


def context_spans(size: int, room: int, stride: int) -> list[tuple[int, int]]:
    """Return (first, stop) of windows of `room` tokens, `stride` apart, over `size` tokens."""
    starts = range(0, max(size - room, 0) + stride, stride)
    return [(first, min(first + room, size)) for first in starts]


def shorter_side(first: int, stop: int) -> np.ndarray:
    """Return each token's context in a window: the shorter of its sides, int64 [stop − first].

    The longer window counts a hundredth of a token more for each of its tokens, as in BERT's own
    code.
    """
    before = np.arange(stop - first)
    return 100 * np.minimum(before, before[::-1]) + (stop - first)
