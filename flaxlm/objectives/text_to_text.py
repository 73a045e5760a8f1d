"""Text to text: write a target text after reading an input text."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from flaxlm.data.order import ExamplePlan, Raw, RowRandom
from flaxlm.data.pipeline import Batch
from flaxlm.errors import ConfigError
from flaxlm.objectives import supervised
from flaxlm.objectives.objective import Objective, Spec, between, floats, ints


@dataclasses.dataclass(frozen=True)
class TextToText(Objective):
    """Learn `target` from `text` (and `text_pair`), with the loss on the target alone.

    An encoder-decoder reads `text EOS` (`text EOS pair EOS`) and writes `target EOS`; a decoder or
    recurrent model goes on from `BOS text EOS` with `target EOS` in one row.

    Attributes:
      target_length: most tokens of a target, its EOS included: the decoder's columns, or the part
        of a decoder-only row that a long input leaves to the target.
      model: the key of MODELS that rows are laid out for; `for_model` sets it.
    """

    target_length: int = 128
    model: str = "encoder_decoder"

    name: ClassVar[str] = "text_to_text"
    generates: ClassVar[bool] = True
    models: ClassVar[dict] = {
        "encoder_decoder": {"lm": 0},
        "decoder": {"lm": 0},
        "recurrent": {"lm": 0},
    }

    def __post_init__(self):
        super().__post_init__()
        between(self, target_length=(1, 2**20))

    def for_model(self, model_name: str) -> "TextToText":
        """Return this objective with its rows laid out for a model of MODELS."""
        self.heads(model_name)
        return dataclasses.replace(self, model=model_name)

    def batch_spec(self, batch_size: int, length: int) -> Spec:
        """Return the decoder's arrays [B, L], and of an encoder-decoder the encoder's [B, M]."""
        row = (batch_size, length)
        spec = {}
        if self.model == "encoder_decoder":
            spec = ints(encoder_tokens=row, encoder_segment_ids=row)
            row = (batch_size, self.target_length)
        spec |= ints(tokens=row, targets=row, segment_ids=row) | floats(weights=row)
        return spec | ints(example_ids=(batch_size,))

    def plan(self, source, length: int, tokenizer, *, seed: int, shuffle: bool) -> ExamplePlan:
        """Return the order of examples with `text`, `target` and optionally `text_pair`.

        What is too long is cut at its end; `report` counts inputs and targets that were.
        """
        eos = tokenizer.eos_id
        inputs = supervised.encode(tokenizer, supervised.column(source, "text", str))
        pairs = supervised.column(source, "text_pair", str, required=False)
        second = supervised.encode(tokenizer, pairs)
        targets = supervised.encode(tokenizer, supervised.column(source, "target", str))
        long = sum(len(target) >= self.target_length for target in targets)
        targets = [target[: self.target_length - 1] for target in targets]
        room = self._room(length, any(map(len, second)))
        if room < 1:
            raise ConfigError(
                f"train.length={length} and objective.target_length={self.target_length} leave no "
                "room for the input text; increase the first or decrease the second"
            )
        inputs, second, cut = supervised.shorten(inputs, second, room)
        begin = [] if self.model == "encoder_decoder" else [tokenizer.bos_id]
        inputs = supervised.join(*begin, inputs, eos)
        inputs = supervised.join(inputs, supervised.with_end(second, eos))
        targets = supervised.join(targets, eos)
        report = {"examples": len(inputs), "truncated": cut, "truncated_targets": long}
        lengths = np.array([len(ids) for ids in inputs], np.int32)
        if self.model == "encoder_decoder":
            sequences = {
                "input": supervised.flat(inputs, length),
                "target": supervised.flat(targets, self.target_length),
            }
        else:
            sequences = {"row": supervised.flat(supervised.join(inputs, targets), length + 1)}
        columns = {"given": lengths}
        return ExamplePlan(sequences, columns, seed, shuffle, report, fixed=("target",))

    def _room(self, length: int, pair: bool) -> int:
        """Return how many tokens of input text fit into a row beside what stands around them."""
        room = length - 1 - pair
        # A row of one part holds BOS and the target; its EOS is a target only, never an input.
        return room if self.model == "encoder_decoder" else room - self.target_length

    def prompt(self, example: Mapping, tokenizer, length: int) -> list[int]:
        """Return the ids that a model reads before it writes an example's target."""
        first = supervised.encode(tokenizer, [example["text"]])
        second = supervised.encode(tokenizer, [example.get("text_pair") or ""])
        room = self._room(length, pair=len(second[0]) > 0)
        first, second, _ = supervised.shorten(first, second, room)
        begin = [] if self.model == "encoder_decoder" else [tokenizer.bos_id]
        second = supervised.with_end(second, tokenizer.eos_id)
        return supervised.join(*begin, first, tokenizer.eos_id, second)[0].tolist()

    def preprocess(self, raw: Raw, rng: RowRandom, tokenizer, length: int) -> Batch:
        """Return the batch; nothing in it is random."""
        if self.model == "encoder_decoder":
            targets = raw["target"]
            real = supervised.filled(raw["target_lengths"], self.target_length)
            start = ((0, 0), (1, 0))
            return {
                "encoder_tokens": raw["input"],
                "encoder_segment_ids": supervised.filled(raw["input_lengths"], length),
                "tokens": np.pad(targets[:, :-1], start, constant_values=tokenizer.start_id),
                "targets": targets,
                "segment_ids": real,
                "weights": real.astype(np.float32),
                "example_ids": raw["example_ids"],
            }
        real = supervised.filled(raw["row_lengths"] - 1, length)
        given = supervised.filled(raw["given"] - 1, length)
        return {
            "tokens": raw["row"][:, :-1] * real,
            "targets": np.ascontiguousarray(raw["row"][:, 1:]),
            "segment_ids": real,
            "weights": (real - given).astype(np.float32),
            "example_ids": raw["example_ids"],
        }
