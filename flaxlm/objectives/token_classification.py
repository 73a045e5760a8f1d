"""A label for each word of a text, on encoders and decoders."""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flaxlm.data.order import ExamplePlan, Raw, RowRandom
from flaxlm.data.pipeline import Batch
from flaxlm.data.vocabulary import Template
from flaxlm.errors import ConfigError, DataError
from flaxlm.objectives import supervised
from flaxlm.objectives.objective import Objective, Spec, Sums, apply, between, floats, ints
from flaxlm.objectives.sequence import set_class_weights, set_labels


class Window(NamedTuple):
    """Words `first` up to, not including, `stop` in a row; `scored` are those it labels."""

    first: int
    stop: int
    scored: np.ndarray


@dataclasses.dataclass(frozen=True)
class TokenClassification(Objective):
    """Choose one of `labels` for each word, on its first piece (Devlin et al., 2018, section 5.3).

    An encoder reads its tokenizer's template around the words, a decoder `BOS words EOS`. What is
    longer than a row stands in several that overlap; of these the one in which a word has most
    context labels it, so that each word counts once, in training and evaluation.

    Attributes:
      labels: the names of the classes; an example's `tags` are indices into them.
      stride: pieces from the beginning of a row to that of the next of the same example, at most;
        0 for half of what a row holds.
      class_weights: what a word of each label counts in the training loss, Σ w · loss / Σ w over
        the batch; empty: all the same. The loss of an evaluation has none.
      model: the key of MODELS that rows are laid out for; `for_model` sets it.
    """

    labels: tuple[str, ...] = ()
    stride: int = 0
    class_weights: tuple[float, ...] = ()
    model: str = "encoder"

    name: ClassVar[str] = "token_classification"
    perplexity_of: ClassVar[str] = ""
    models: ClassVar[dict] = {"encoder": {}, "decoder": {}}

    def __post_init__(self):
        super().__post_init__()
        set_labels(self)
        set_class_weights(self)
        between(self, stride=(0, 2**20))

    def heads(self, model_name: str) -> dict[str, int]:
        """Return a head of C classes for each token."""
        super().heads(model_name)
        return {"token_classification": len(self.labels)}

    def for_model(self, model_name: str) -> "TokenClassification":
        """Return this objective with its rows laid out for a model of MODELS."""
        self.heads(model_name)
        return dataclasses.replace(self, model=model_name)

    def batch_spec(self, batch_size: int, length: int) -> Spec:
        """Return the row's arrays [B, L] and `owner` [B].

        `words` is a word's number in its example, from 1, on the piece that is labelled, and 0
        elsewhere; `owner` is the example's number.
        """
        row, one = (batch_size, length), (batch_size,)
        spec = ints(tokens=row, segment_ids=row)
        if self.model == "encoder":
            spec |= ints(token_types=row)
        spec |= ints(labels=row, words=row) | floats(weights=row)
        return spec | ints(owner=one, example_ids=one)

    def plan(self, source, length: int, tokenizer, *, seed: int, shuffle: bool) -> ExamplePlan:
        """Return the order of the windows of examples with `words` and `tags`.

        Each word of `words` has the space that stands before it, if there is one. A word that is
        longer than a row is cut to its first pieces. `report` counts examples, windows, examples
        in several windows, words that were cut, and words of no piece that became `unk`.
        """
        words = supervised.column(source, "words", list)
        tags = self._tags(source, words, shuffle)
        if shuffle:
            counts = np.bincount(np.concatenate(tags), minlength=len(self.labels))
            supervised.warn_absent(counts, self.labels, shuffle)
        end = (tokenizer.eos_id,)
        frame = Template.of([tokenizer.bos_id], [], end).single
        if self.model == "encoder":
            frame = tokenizer.template.single
        room = length - frame.size
        if room < 1:
            raise ConfigError(f"train.length={length} holds no word; increase it")
        stride = self.stride or max(1, room // 2)
        if stride > room:
            raise ConfigError(
                f"objective.stride={stride} leaves words out: a row of train.length={length} holds "
                f"{room} pieces; decrease it, or increase the length"
            )
        pieces, unknown = encode_words(tokenizer, [word for part in words for word in part])
        cut = sum(len(ids) > room for ids in pieces)
        pieces = [ids[:room] for ids in pieces]
        report = {"examples": len(words), "windows": 0, "split": 0, "truncated": cut}
        rows: dict[str, list] = {"text": [], "types": [], "words": [], "labels": []}
        owner, begin = [], 0
        for number, part in enumerate(words):
            ids = pieces[begin : begin + len(part)]
            begin += len(part)
            found = windows([len(word) for word in ids], room, stride, self.model == "decoder")
            for window in found:
                row, types = frame.around(np.concatenate(ids[window.first : window.stop]))
                sizes = [len(word) for word in ids[window.first : window.stop]]
                starts = len(frame.specials[0]) + np.cumsum([0, *sizes[:-1]])
                places = starts[window.scored - window.first]
                numbers, labels = np.zeros((2, len(row)), np.int32)
                numbers[places] = window.scored + 1
                labels[places] = tags[number][window.scored]
                for name, values in zip(rows, (row, types, numbers, labels), strict=True):
                    rows[name].append(values)
                owner.append(number)
            report["windows"] += len(found)
            report["split"] += len(found) > 1
        if self.model != "encoder":
            del rows["types"]
        sequences = {name: supervised.flat(values, length) for name, values in rows.items()}
        columns = {"owner": np.array(owner, np.int32)}
        return ExamplePlan(sequences, columns, seed, shuffle, report | {"unknown": unknown})

    def _tags(self, source, words: list, training: bool) -> list[np.ndarray]:
        """Return the label ids of each example's words, zeros where they are not known."""
        found = supervised.gold(source, "tags", list, training)
        known = any(found)
        for number, (part, tags) in enumerate(zip(words, found, strict=True)):
            who = f"example {source[number].get('id', number)}"
            if not part:
                raise DataError(f"{who} has no words")
            if known and len(tags) != len(part):
                raise DataError(f"{who}: {len(part)} words and {len(tags)} tags")
            bad = [tag for tag in tags if not 0 <= tag < len(self.labels)]
            if bad:
                raise DataError(
                    f"{who}: tag {bad[0]} is not in 0 … {len(self.labels) - 1} "
                    f"({', '.join(self.labels)})"
                )
        return [
            np.array(tags if known else [0] * len(part), np.int32)
            for part, tags in zip(words, found, strict=True)
        ]

    def preprocess(self, raw: Raw, rng: RowRandom, tokenizer, length: int) -> Batch:
        """Return the batch; nothing in it is random."""
        batch = {
            "tokens": raw["text"],
            "segment_ids": supervised.filled(raw["text_lengths"], length),
            "labels": raw["labels"],
            "words": raw["words"],
            "weights": (raw["words"] > 0).astype(np.float32),
            "owner": raw["owner"],
            "example_ids": raw["example_ids"],
        }
        if self.model == "encoder":
            batch["token_types"] = raw["types"]
        return batch

    def weighted(self, batch) -> jax.Array:
        """Return what each position counts in training [B, L]: its word, by the label's weight."""
        if not self.class_weights:
            return batch["weights"]
        return batch["weights"] * jnp.asarray(self.class_weights, jnp.float32)[batch["labels"]]

    def weights(self, batch) -> dict[str, jax.Array]:
        """Return the weight of the training loss: words, by their labels."""
        return {"loss": jnp.sum(self.weighted(batch))}

    def loss(self, model, params, batch, rng, train: bool) -> tuple[Sums, Sums]:
        """Return the term `loss` and the accuracy, of words."""
        logits = apply(model, params, batch, rng, train)["token_classification"]
        labels, counted = batch["labels"], batch["weights"]
        total, weight, correct = self.cross_entropy(logits, labels, counted, train)
        metrics = {"accuracy": (correct, weight)}
        if train and self.class_weights:
            weighted = self.weighted(batch)
            total, weight, _ = self.cross_entropy(logits, labels, weighted, train)
        return {"loss": (total, weight)}, metrics

    def predict(self, model, params, batch) -> dict[str, jax.Array]:
        """Return `scores` float32 [B, L, C], log p(label) in nats, with `words` and `owner`."""
        logits = apply(model, params, batch, None, False)["token_classification"]
        scores = jax.nn.log_softmax(logits.astype(jnp.float32))
        return {"scores": scores, "words": batch["words"], "owner": batch["owner"]}


def encode_words(tokenizer, words: Sequence[str]) -> tuple[supervised.Tokens, int]:
    """Return int32 ids of each word by itself, and how many have no piece and became `unk`.

    The space before a word belongs to it where the vocabulary has it so, or has spaces as pieces.
    """
    space = tokenizer.encode(" ")
    parted = tokenizer.encode("a") + space + tokenizer.encode("b")
    if not tokenizer.spaces_join and not (space and tokenizer.encode("a b") == parted):
        words = [word.removeprefix(" ") for word in words]
    distinct = list(dict.fromkeys(words))
    ids = dict(zip(distinct, supervised.encode(tokenizer, distinct), strict=True))
    unk = np.array([tokenizer.unk_id], np.int32)
    found = [ids[word] for word in words]
    return [part if len(part) else unk for part in found], sum(not len(part) for part in found)


def windows(sizes: Sequence[int], room: int, stride: int, causal: bool = False) -> list[Window]:
    """Return rows of whole words that hold a text; every word is scored in one of them.

    Args:
      sizes: pieces of each word, 1 … room.
      room: pieces of a row.
      stride: most pieces from the first of a row to that of the next, 1 … room; at least a word.
      causal: context is what stands before a word, and not the shorter of its two sides.
    """
    ends = np.cumsum(sizes)
    starts = ends - sizes
    spans, first = [], 0
    while True:
        stop = int(np.searchsorted(ends, starts[first] + room, "right"))
        spans.append((first, stop))
        if stop == len(ends):
            break
        far = int(np.searchsorted(starts, starts[first] + stride, "right")) - 1
        # The last row is as full as the others.
        first = min(max(far, first + 1), int(np.searchsorted(starts, ends[-1] - room)))
    context, chosen = np.full(len(ends), -1), np.zeros(len(ends), np.int64)
    for number, (first, stop) in enumerate(spans):
        here = starts[first:stop] - starts[first]
        if not causal:
            here = np.minimum(here, ends[stop - 1] - ends[first:stop])
        better = here > context[first:stop]
        chosen[first:stop][better] = number
        context[first:stop][better] = here[better]
    found = [Window(*span, np.flatnonzero(chosen == number)) for number, span in enumerate(spans)]
    return [window for window in found if len(window.scored)]
