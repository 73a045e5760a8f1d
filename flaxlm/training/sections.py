"""The sections `train` and `eval` of a config: how long, on what shapes, judged by what."""

import dataclasses
import itertools

from flaxlm.data.sources import SPLITS
from flaxlm.errors import ConfigError, choose


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How long and on what shapes to train.

    The duration is `steps`, or `tokens`, or `epochs`: the first that is not 0. `batch_size` is
    global, in rows; `length` is the row's length in tokens (the encoder's, for encoder-decoder).
    `buckets` are smaller lengths, ascending, for tasks with examples: rows of like length are
    batched together and cut to the smallest that holds them, each with a compilation of its own
    (`tokens` counts rows of the full length all the same). Those not below `length` are not used.
    """

    steps: int = 0
    tokens: int = 0
    epochs: float = 0.0
    batch_size: int = 32
    length: int = 256
    buckets: tuple[int, ...] = ()
    microbatches: int = 1
    ema_decay: float = 0.0
    skip_nonfinite: int = 0
    log_every: int = 10
    profile_steps: str = ""
    stuck_after: float = 3600.0

    def __post_init__(self):
        for name in ("batch_size", "length", "microbatches", "log_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"train.{name}={getattr(self, name)} must be at least 1")
        if self.steps < 0 or self.tokens < 0 or self.epochs < 0:
            raise ConfigError("train.steps, train.tokens and train.epochs must not be negative")
        if not (self.steps or self.tokens or self.epochs):
            raise ConfigError("no duration: set train.steps, train.tokens or train.epochs")
        if self.batch_size % self.microbatches:
            raise ConfigError(
                f"train.batch_size={self.batch_size} does not divide into "
                f"train.microbatches={self.microbatches}"
            )
        if any(low >= high for low, high in itertools.pairwise((0, *self.buckets))):
            raise ConfigError(f"train.buckets={self.buckets} must be lengths from 1, ascending")
        if not 0 <= self.ema_decay < 1:
            raise ConfigError(f"train.ema_decay={self.ema_decay} must be in [0, 1); 0 is off")
        if self.profile_steps:
            self.profile_range()

    @property
    def shorter(self) -> tuple[int, ...]:
        """The buckets below `length`."""
        return tuple(width for width in self.buckets if width < self.length)

    def profile_range(self) -> tuple[int, int]:
        """Return (first, last) of `profile_steps`, written `first:last`."""
        try:
            first, last = (int(part) for part in self.profile_steps.split(":"))
        except ValueError:
            raise ConfigError(
                f"train.profile_steps={self.profile_steps!r} is not of the form first:last"
            ) from None
        return first, last

    def total_steps(self, rows: int) -> int:
        """Return the duration in steps; `rows` is the number of rows in an epoch."""
        if self.steps:
            return self.steps
        if self.tokens:
            return -(-self.tokens // (self.batch_size * self.length))
        return max(1, round(self.epochs * rows / self.batch_size))


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """Evaluation in the loop, and what decides the best checkpoint and early stopping.

    `every` is in steps (0: only at the end), `split` may be empty for no evaluation; `metric` is
    compared as `mode` says, and after `patience` evaluations in a row without a better one the
    run ends early (0: never), and whoever reads the run takes its best checkpoint.
    """

    every: int = 0
    split: str = "valid"
    batch_size: int = 0
    metric: str = "loss"
    mode: str = "min"
    patience: int = 0

    def __post_init__(self):
        choose("eval.split", self.split, (*SPLITS, ""))
        choose("eval.mode", self.mode, ("min", "max"))
        if self.every < 0 or self.batch_size < 0 or self.patience < 0:
            raise ConfigError("eval.every, eval.batch_size and eval.patience must be 0 or more")
