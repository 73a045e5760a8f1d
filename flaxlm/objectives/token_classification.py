"""A label for each word of a text, on encoders and decoders."""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import jax
import numpy as np

from flaxlm.data.order import ExamplePlan, Raw, RowRandom
from flaxlm.data.pipeline import Batch
from flaxlm.errors import ConfigError, DataError, check_range
from flaxlm.objectives import supervised
from flaxlm.objectives.objective import Spec, floats, ints


class WordWindow(NamedTuple):
    """Words `first` up to, not including, `stop` in a row; `scored` are those it labels."""

    first: int
    stop: int
    scored: np.ndarray


@dataclasses.dataclass(frozen=True)
class TokenClassification(supervised.Classifier):
    """Choose one of `labels` for each word, on its first piece (Devlin et al., 2018, section 5.3).

    What is longer than a row is laid out in several that overlap; a word is labelled in the one
    where it has most context, so that each word counts once, in training and evaluation.
    """

    stride: int = 0  # most pieces from one row's beginning to the next's; 0: half of a row's

    name: ClassVar[str] = "token_classification"
    head: ClassVar[str] = "token_classification"

    def __post_init__(self):
        super().__post_init__()
        check_range("objective", self, "stride", high=2**20)

    def batch_spec(self, batch_size: int, length: int) -> Spec:
        """Return the row's arrays [B, L] and `owner` [B].

        `words` is a word's number in its example, from 1, on the piece that is labelled, and 0
        elsewhere; `owner` is the example's number.
        """
        row = (batch_size, length)
        spec = self.row_spec(batch_size, length) | ints(labels=row, words=row) | floats(weights=row)
        return spec | ints(owner=(batch_size,))

    def plan(self, source, length: int, tokenizer, *, seed: int, shuffle: bool) -> ExamplePlan:
        """Return the order of the windows of examples with `words` and `tags`.

        Each word of `words` has the space that stands before it, if there is one. A word that is
        longer than a row is cut to its first pieces. `report` counts examples, windows, examples
        in several windows, words that were cut, and words without a piece, which became `unk`.
        """
        words = supervised.column(source, "words", list)
        tags = self._tags(source, words, shuffle)
        if shuffle:
            counts = np.bincount(np.concatenate(tags), minlength=len(self.labels))
            supervised.warn_absent(counts, self.labels, shuffle)
        frame = self.template(tokenizer).single
        room = length - frame.size
        if room < 1:
            raise ConfigError(f"train.length={length} leaves no room for words; increase it")
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
            sizes = list(map(len, ids))
            windows = word_windows(sizes, room, stride, not self.traits.bidirectional)
            for window in windows:
                row, types = frame.around(np.concatenate(ids[window.first : window.stop]))
                starts = np.cumsum([len(frame.specials[0]), *sizes[window.first : window.stop - 1]])
                places = starts[window.scored - window.first]
                numbers, labels = np.zeros((2, len(row)), np.int32)
                numbers[places] = window.scored + 1
                labels[places] = tags[number][window.scored]
                for name, values in zip(rows, (row, types, numbers, labels), strict=True):
                    rows[name].append(values)
                owner.append(number)
            report["windows"] += len(windows)
            report["split"] += len(windows) > 1
        if not self.traits.bidirectional:
            del rows["types"]
        sequences = {name: supervised.flat(values, length) for name, values in rows.items()}
        columns = {"owner": np.array(owner, np.int32)}
        return ExamplePlan(sequences, columns, seed, shuffle, report | {"unknown": unknown})

    def _tags(self, source, words: list, training: bool) -> list[np.ndarray]:
        """Return the label ids of each example's words, zeros where they are not known."""
        gold = supervised.gold(source, "tags", list, training)
        known, ids = any(gold), []
        for number, (part, tags) in enumerate(zip(words, gold, strict=True)):
            who = supervised.name_of(source, number)
            if not part:
                raise DataError(f"{who} has no words")
            if known and len(tags) != len(part):
                raise DataError(f"{who}: {len(part)} words and {len(tags)} tags")
            supervised.check_ids(source, number, tags, self.labels)
            ids.append(np.array(tags if known else [0] * len(part), np.int32))
        return ids

    def preprocess(self, raw: Raw, rng: RowRandom, tokenizer, length: int) -> Batch:
        """Return the batch; nothing in it is random."""
        batch = self.row_batch(raw, length) | {n: raw[n] for n in ("labels", "words", "owner")}
        return batch | {"weights": (raw["words"] > 0).astype(np.float32)}

    def predict(self, model, params, batch) -> dict[str, jax.Array]:
        """Return `scores` float32 [B, L, C], log p(label) in nats, with `words` and `owner`."""
        scores = super().predict(model, params, batch)
        return scores | {"words": batch["words"], "owner": batch["owner"]}


def encode_words(tokenizer, words: Sequence[str]) -> tuple[supervised.Tokens, int]:
    """Return int32 ids of each word by itself, and how many have no piece and became `unk`.

    The space before a word belongs to it where the vocabulary joins the two, or has spaces as
    pieces.
    """
    space = tokenizer.encode(" ")
    parted = tokenizer.encode("a") + space + tokenizer.encode("b")
    if not tokenizer.spaces_join and not (space and tokenizer.encode("a b") == parted):
        words = [word.removeprefix(" ") for word in words]
    distinct = list(dict.fromkeys(words))
    ids = dict(zip(distinct, supervised.encode(tokenizer, distinct), strict=True))
    unk = np.array([tokenizer.unk_id], np.int32)
    encoded = [ids[word] for word in words]
    return [part if len(part) else unk for part in encoded], sum(not len(part) for part in encoded)


def word_windows(
    sizes: Sequence[int], room: int, stride: int, causal: bool = False
) -> list[WordWindow]:
    """Return rows of whole words that hold a text; every word is scored in one of them.

    Args:
      sizes: pieces of each word, 1 … room.
      room: pieces of a row.
      stride: most pieces from the first of a row to that of the next, 1 … room; at least a word.
      causal: a word's context is what stands before it, instead of its shorter side.
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

    def context(first: int, stop: int) -> np.ndarray:
        before = starts[first:stop] - starts[first]
        return before if causal else np.minimum(before, ends[stop - 1] - ends[first:stop])

    chosen = supervised.best_window(spans, context)
    windows = []
    for number, (first, stop) in enumerate(spans):
        scored = first + np.flatnonzero(chosen[first:stop] == number)
        windows += [WordWindow(first, stop, scored)] * bool(len(scored))
    return windows
