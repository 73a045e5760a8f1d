"""Text to text: write a target text after reading an input text."""

import dataclasses
from typing import ClassVar

import numpy as np

from flaxlm.data.order import ExamplePlan, Plan, Raw, RowRandom
from flaxlm.data.packing import PackedExamples
from flaxlm.data.pipeline import Batch
from flaxlm.errors import ConfigError, check_range, choose
from flaxlm.models import Model
from flaxlm.objectives import supervised
from flaxlm.objectives.objective import Spec, floats, ints, shift_right

KEEPS = ("start", "end")


@dataclasses.dataclass(frozen=True)
class TextToText(supervised.Supervised):
    """Learn `target` from `text` (and `text_pair`), with the loss on the target alone.

    What is written ends in EOS. A decoder or recurrent model goes on from the input in one row, of
    which a long input leaves `target_length` to the target. Rows are packed in training alone.
    """

    target_length: int = 128  # most tokens of a target, its EOS included: the decoder's columns
    keep: str = "start"  # which part of an input that is too long stays, its start or its end
    pack: bool = False  # examples share a training row, best fit, and do not see each other
    num_beams: int = 1  # of the search by which an evaluation generates; 1: greedy
    length_penalty: float = 0.6  # α of a beam search; see `flaxlm.inference.beam`
    model: str = "encoder_decoder"

    name: ClassVar[str] = "text_to_text"
    perplexity_of: ClassVar[str] = "loss"
    generates: ClassVar[bool] = True

    def __post_init__(self):
        super().__post_init__()
        choose("objective.keep", self.keep, KEEPS)
        check_range("objective", self, "target_length", low=1, high=2**20)
        check_range("objective", self, "num_beams", low=1, high=1024)
        check_range("objective", self, "length_penalty", high=100)

    @classmethod
    def fits(cls, row: Model) -> bool:
        """Return whether a model writes text."""
        return row.writes

    def batch_spec(self, batch_size: int, length: int) -> Spec:
        """Return the decoder's arrays [B, L] and an encoder-decoder's encoder arrays [B, M]."""
        row, spec = (batch_size, length), {}
        if self.traits.encodes:
            spec = ints(encoder_tokens=row, encoder_segment_ids=row)
            row = (batch_size, self.target_length)
        spec |= ints(tokens=row, targets=row, segment_ids=row) | floats(weights=row)
        return spec | ints(example_ids=(batch_size,))

    def plan(self, source, length: int, tokenizer, *, seed: int, shuffle: bool) -> Plan:
        """Return the order of examples with `text`, `target` and optionally `text_pair`.

        What is too long is cut, targets at their end; `report` counts inputs and targets that were.
        """
        inputs, second = (supervised.encode(tokenizer, t) for t in supervised.texts_of(source))
        targets = supervised.encode(tokenizer, supervised.gold(source, "target", str, shuffle))
        long = sum(len(target) >= self.target_length for target in targets)
        targets = [target[: self.target_length - 1] for target in targets]
        template = self.template(tokenizer)
        room = length - (template.pair if any(map(len, second)) else template.single).size
        if not self.traits.encodes:
            # Its row holds the target too; the last EOS of a row is a target, never an input.
            room += 1 - self.target_length
        if room < 1:
            raise ConfigError(
                f"train.length={length} and objective.target_length={self.target_length} leave no "
                "room for the input text; increase the first or decrease the second"
            )
        inputs, second, cut = supervised.shorten(inputs, second, room, self.keep)
        inputs, _ = supervised.framed(template, inputs, second)
        targets = [np.append(target, np.int32(tokenizer.eos_id)) for target in targets]
        report = {"examples": len(inputs), "truncated": cut, "truncated_targets": long}
        if self.traits.encodes:
            sequences = {"input": supervised.flat(inputs, length)}
            sequences["target"] = supervised.flat(targets, self.target_length)
        else:
            rows = [np.concatenate(parts) for parts in zip(inputs, targets, strict=True)]
            sequences = {"row": supervised.flat(rows, length + 1)}
        columns = {"prompt_lengths": np.array([len(ids) for ids in inputs], np.int32)}
        if self.pack and shuffle:  # an example is judged by itself: only training shares rows
            return PackedExamples(sequences, columns, seed, shuffle, report)
        return ExamplePlan(sequences, columns, seed, shuffle, report, fixed=("target",))

    def prompts(self, plan: ExamplePlan) -> list[list[int]]:
        """Return the ids that a model reads before it writes the target, of each row of a plan."""
        name = "input" if self.traits.encodes else "row"
        values, offsets, _ = plan.sequences[name]
        spans = zip(offsets[:-1], plan.columns["prompt_lengths"], strict=True)
        return [values[start : start + length].tolist() for start, length in spans]

    def request(self, prompt: str, tokenizer) -> str | list[int]:
        """Return a prompt as it stood before an answer in training."""
        if self.traits.encodes:
            return prompt  # every prompt is given its EOS
        return [tokenizer.bos_id, *tokenizer.encode(prompt), tokenizer.eos_id]

    def preprocess(self, raw: Raw, rng: RowRandom, tokenizer, length: int) -> Batch:
        """Return the batch; nothing in it is random."""
        if self.traits.encodes:
            segments, positions = _places(raw, "target", self.target_length)
            return {
                "encoder_tokens": raw["input"],
                "encoder_segment_ids": _places(raw, "input", length)[0],
                "tokens": shift_right(raw["target"], positions, tokenizer.start_id),
                "targets": raw["target"],
                "segment_ids": segments,
                "weights": (segments > 0).astype(np.float32),
                "example_ids": raw["example_ids"],
            }
        row = raw["row"]
        segments, positions = _places(raw, "row", length + 1)
        # The last token of a target predicts nothing: padding or another example follows.
        asks = (segments[:, 1:] == segments[:, :-1]) & (segments[:, :-1] > 0)
        lengths = np.pad(raw["prompt_lengths"].reshape(len(row), -1), ((0, 0), (1, 0)))
        lengths = np.take_along_axis(lengths, segments[:, :-1], axis=1)
        return {
            "tokens": row[:, :-1] * asks,
            "targets": np.ascontiguousarray(row[:, 1:]),
            "segment_ids": segments[:, :-1] * asks,
            "weights": (asks & (positions[:, :-1] >= lengths - 1)).astype(np.float32),
            "example_ids": raw["example_ids"],
        }


def _places(raw: Raw, name: str, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the segment and the position [B, width] of each token of a plan's sequence."""
    if f"{name}_segments" in raw:
        return raw[f"{name}_segments"], raw[f"{name}_positions"]
    segments = supervised.filled(raw[f"{name}_lengths"], width)
    return segments, segments * np.arange(width, dtype=np.int32)
