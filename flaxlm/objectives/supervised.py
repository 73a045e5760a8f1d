"""What the supervised objectives share: examples become flat token arrays, once, at plan time."""

import dataclasses
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from flaxlm.data.order import Raw
from flaxlm.data.pipeline import Batch
from flaxlm.data.template import Template
from flaxlm.data.unknown import warn_unknown
from flaxlm.errors import ConfigError, DataError
from flaxlm.models import MODELS, Model, losses
from flaxlm.objectives.objective import Objective, Spec, Sums, apply, ints

Tokens = list[np.ndarray]
NUMBERS = {int: (int, np.integer), float: (int, float, np.integer, np.floating)}


@dataclasses.dataclass(frozen=True)
class Supervised(Objective):
    """Base of the objectives that learn from examples."""

    model: str = "encoder"  # the key of MODELS that rows are laid out for; `for_model` sets it

    perplexity_of: ClassVar[str] = ""

    def for_model(self, model_name: str) -> "Supervised":
        """Return this objective with its rows laid out for a model of MODELS."""
        self.heads(model_name)
        return dataclasses.replace(self, model=model_name)

    @property
    def traits(self) -> Model:
        """What the model reads and writes that rows are laid out for."""
        return MODELS[self.model]

    def template(self, tokenizer) -> Template:
        """Return the special tokens around texts: the tokenizer's own where an encoder reads them.

        By default those are `[CLS] a [SEP]` and `[CLS] a [SEP] b [SEP]`. An encoder-decoder reads
        `a EOS` or `a EOS b EOS`, other models that write begin with BOS.
        """
        if self.traits.bidirectional:
            return tokenizer.template
        end = (tokenizer.eos_id,)
        return Template.of(() if self.traits.encodes else (tokenizer.bos_id,), end, end)

    @property
    def row_names(self) -> list[str]:
        """Names in a batch of a row's ids, of what is not padding, and of an encoder's types."""
        prefix = "encoder_" if self.traits.encodes else ""
        names = [f"{prefix}tokens", f"{prefix}segment_ids"]
        return names + ["token_types"] * self.traits.bidirectional

    def row_spec(self, batch_size: int, length: int) -> Spec:
        """Return the entries of a row's arrays [B, L], and example_ids [B]."""
        row = dict.fromkeys(self.row_names, (batch_size, length))
        return ints(**row, example_ids=(batch_size,))

    def row_batch(self, raw: Raw, length: int) -> Batch:
        """Return the arrays of `row_spec`."""
        arrays = (raw["text"], filled(raw["text_lengths"], length), raw.get("types"))
        row = dict(zip(self.row_names, arrays, strict=False))
        return row | {"example_ids": raw["example_ids"]}


@dataclasses.dataclass(frozen=True)
class Classifier(Supervised):
    """Base of the objectives that choose one of `labels` for each example, or for each word.

    With `class_weights` the training loss is Σ w · loss / Σ w over the batch; that of an
    evaluation is unweighted.
    """

    labels: tuple[str, ...] = ()  # the names of the classes; examples hold indices into them
    class_weights: tuple[float, ...] = ()  # w of each label; empty: all the same

    def __post_init__(self):
        super().__post_init__()
        set_labels(self)
        object.__setattr__(self, "class_weights", weights := tuple(self.class_weights))
        if weights and (len(weights) != len(self.labels) or min(weights) <= 0):
            raise ConfigError(
                f"objective.class_weights={weights}: one positive number for each of the "
                f"{len(self.labels)} labels {self.labels} is needed"
            )

    def counted(self, batch) -> jax.Array:
        """Return what each prediction counts in an evaluation, an array that begins as `labels`."""
        return batch["weights"]

    def weighted(self, batch) -> jax.Array:
        """Return what each prediction counts in training: `counted` times its label's weight."""
        counted = self.counted(batch)
        if not self.class_weights:
            return counted
        weights = jnp.asarray(self.class_weights, jnp.float32)[batch["labels"]]
        return counted * weights.reshape(*weights.shape, *(1,) * (counted.ndim - weights.ndim))

    def weights(self, batch) -> dict[str, jax.Array]:
        """Return the weight of the training loss."""
        return {"loss": jnp.sum(self.weighted(batch))}

    @property
    def judged(self) -> tuple[str, str]:
        """The head that is judged, and the array of the batch with what it should say."""
        return self.head, "labels"

    def loss(self, model, params, batch, rng, train: bool) -> tuple[Sums, Sums]:
        """Return the term `loss` and the accuracy, which is never weighted by class."""
        head, targets = self.judged
        logits, options = apply(model, params, batch, rng, train)[head], self.penalties(train)
        judged = logits, batch[targets]
        total, weight, correct = losses.cross_entropy(*judged, self.counted(batch), *options)
        accuracy = {"accuracy": (correct, weight)}
        if train and self.class_weights:
            total, weight, _ = losses.cross_entropy(*judged, self.weighted(batch), *options)
        return {"loss": (total, weight)}, accuracy

    def predict(self, model, params, batch) -> dict[str, jax.Array]:
        """Return `scores` float32 [..., C], log p(label) in nats."""
        logits = apply(model, params, batch, None, False)[self.head]
        return {"scores": jax.nn.log_softmax(logits.astype(jnp.float32))}


def set_labels(objective) -> None:
    """Make `labels` a tuple; ConfigError unless it names two labels or more, each once."""
    labels = tuple(objective.labels)
    object.__setattr__(objective, "labels", labels)
    if len(labels) < 2 or len(set(labels)) != len(labels):
        raise ConfigError(f"objective.labels={labels}: two or more different labels are needed")


def name_of(examples: Sequence[Mapping], number: int) -> str:
    """Return what an error calls an example: its id, or its number."""
    return f"example {examples[number].get('id', number)}"


def column(examples: Sequence[Mapping], name: str, kind: type, required: bool = True) -> list:
    """Return one field of all examples; DataError names the example and what it has."""
    values = []
    for number, example in enumerate(examples):
        value = example.get(name)
        if value is None and not required:
            value = kind()
        if not isinstance(value, NUMBERS.get(kind, kind)):
            raise DataError(
                f"{name_of(examples, number)}: {name!r} is {type(value).__name__}, a "
                f"{kind.__name__} is needed; the example has: {', '.join(map(str, example))}"
            )
        values.append(value)
    if not values:
        raise DataError("there are no examples; check the task's data path and split")
    return values


def gold(examples: Sequence[Mapping], name: str, kind: type, training: bool) -> list:
    """Return the gold answers of all examples; empty ones for a split to answer that has none."""
    if training or any(example.get(name) is not None for example in examples):
        return column(examples, name, kind)
    return [kind()] * len(examples)


def check_ids(examples: Sequence[Mapping], number: int, ids, labels: Sequence[str]) -> None:
    """Raise DataError for an id of an example that is no index into `labels`."""
    if bad := [i for i in ids if not 0 <= i < len(labels)]:
        raise DataError(
            f"{name_of(examples, number)}: label {bad[0]} is not in 0 … {len(labels) - 1} "
            f"({', '.join(labels)})"
        )


def warn_absent(counts: Sequence[int], labels: Sequence[str], training: bool) -> None:
    """Warn of labels that do not occur: in training of any, in evaluation of all but one.

    `counts` says how often each does, all 0 in a split without gold labels.
    """
    absent = [label for label, count in zip(labels, counts, strict=True) if not count]
    shown = ", ".join(absent[:10]) + (f" and {len(absent) - 10} more" if len(absent) > 10 else "")
    if training and absent:
        warnings.warn(f"nothing in the training split is labelled {shown}", stacklevel=3)
    elif len(absent) == len(labels) - 1:
        (only,) = set(labels) - set(absent)
        warnings.warn(
            f"every example of the evaluation split has the label {only}: its scores say little",
            stacklevel=3,
        )


def encode(tokenizer, texts: Sequence[str]) -> Tokens:
    """Return int32 ids of each text, without special tokens; much that is unknown is warned of."""
    encoded = [np.asarray(ids, np.int32) for ids in tokenizer.encode_batch(list(texts))]
    warn_unknown(tokenizer, encoded, texts)
    return encoded


def texts_of(examples: Sequence[Mapping]) -> tuple[list[str], list[str]]:
    """Return `text` of each example, and `text_pair` or ''."""
    return column(examples, "text", str), column(examples, "text_pair", str, required=False)


def shorten(
    first: Tokens, second: Tokens, room: int, keep: str = "start"
) -> tuple[Tokens, Tokens, int]:
    """Cut pairs to `room` tokens, the longer of the two first; return them and how many were cut.

    `keep` says which part of a text stays, its 'start' or its 'end'.
    """

    def part(ids: np.ndarray, most: int) -> np.ndarray:
        return ids[:most] if keep == "start" else ids[len(ids) - most :]

    one, two, cut = [], [], 0
    for a, b in zip(first, second, strict=True):
        over = len(a) + len(b) - room
        if over > 0:
            cut += 1
            # What both keep if they are equally long; a shorter one leaves its part to the other.
            keep_b = min(len(b), max(room // 2, room - len(a)))
            a, b = part(a, room - keep_b), part(b, keep_b)
        one.append(a)
        two.append(b)
    return one, two, cut


def framed(template: Template, first: Tokens, second: Tokens) -> tuple[Tokens, Tokens]:
    """Return (rows, token types) of texts in a template; an absent second text is empty."""
    rows = [
        template.pair.around(a, b) if len(b) else template.single.around(a)
        for a, b in zip(first, second, strict=True)
    ]
    return [ids for ids, _ in rows], [types for _, types in rows]


def flat(tokens: Tokens, width: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Return (values, offsets, width) of an ExamplePlan's sequence."""
    offsets = np.cumsum([0, *map(len, tokens)])
    return np.concatenate([np.zeros(0, np.int32), *tokens]), offsets, width


def filled(lengths: np.ndarray, width: int) -> np.ndarray:
    """Return int32 [B, width], 1 on the first lengths[b] columns."""
    return (np.arange(width) < lengths[:, None]).astype(np.int32)


def best_window(spans: Sequence[tuple[int, int]], context: Callable) -> np.ndarray:
    """Return int64 [n], the window in which each of n items has most context, of equals the first.

    `spans` are (first, stop) of the windows, which cover all items; `context` of one gives that of
    each item in it, int [stop − first].
    """
    most, chosen = np.full(spans[-1][1], -1), np.zeros(spans[-1][1], np.int64)
    for number, (first, stop) in enumerate(spans):
        here = context(first, stop)
        better = here > most[first:stop]
        chosen[first:stop][better] = number
        most[first:stop][better] = here[better]
    return chosen
