"""The sections `train` and `eval` of a config: how long, on what shapes, judged by what."""

import dataclasses
import itertools

from flaxlm.data.sources import SPLITS
from flaxlm.errors import ConfigError, check_range, choose
from flaxlm.metrics.measure import direction

DURATIONS = ("steps", "tokens", "epochs")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How long, in `steps`, `tokens` or `epochs`, and on what shapes to train.

    `length` is the encoder's, for encoder-decoders. Rows of like length are batched together and
    cut to the smallest of the `buckets` that holds them, each with a compilation of its own
    (`tokens` counts rows of the full length all the same). Those not below `length` are not used.
    """

    steps: int = 0  # duration in updates
    tokens: int = 0  # duration in tokens, of full rows
    epochs: float = 0.0  # duration in passes over the rows
    batch_size: int = 32  # rows a step, over all devices
    length: int = 256  # tokens a row
    buckets: tuple[int, ...] = ()  # smaller lengths, ascending, for tasks with examples
    microbatches: int = 1  # parts that a batch is computed in, one after the other
    ema_decay: float = 0.0  # of the average of the parameters that is evaluated and saved; 0: none
    skip_nonfinite: int = 0  # updates to skip in a row before the run ends as diverged
    log_every: int = 10  # steps between rows of metrics.jsonl
    profile_steps: str = ""  # first:last step of a trace; empty: none
    stuck_after: float = 3600.0  # seconds without a step after which the run ends; 0: never

    def __post_init__(self):
        check_range("train", self, "batch_size", "length", "microbatches", "log_every", low=1)
        check_range("train", self, *DURATIONS)
        durations = {f"train.{n}": getattr(self, n) for n in DURATIONS if getattr(self, n)}
        if not durations:
            raise ConfigError("no duration: set train.steps, train.tokens or train.epochs")
        if len(durations) > 1:
            *others, last = (f"{key}={value}" for key, value in durations.items())
            how_many = "two" if len(others) == 1 else "three"
            raise ConfigError(
                f"{', '.join(others)} and {last} are {how_many} durations; set all but one to 0"
            )
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
            first, last = map(int, self.profile_steps.split(":"))
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

    Whoever reads a run that may end early (`patience`) takes its best checkpoint.
    """

    every: int = 0  # steps between evaluations; 0: only at the end
    split: str = "valid"  # train, valid, test; empty: no evaluation
    batch_size: int = 0  # rows evaluated at once; 0: as in training
    metric: str = "loss"  # what the best checkpoint is chosen by
    mode: str = "min"  # min or max; follows the metric where only that is given
    patience: int = 0  # evaluations without a better one before the run ends; 0: never

    def __post_init__(self):
        choose("eval.split", self.split, (*SPLITS, ""))
        choose("eval.mode", self.mode, ("min", "max"))
        if direction(self.metric) not in ("", self.mode):
            raise ConfigError(
                f"eval.mode={self.mode!r} would keep the worst by eval.metric={self.metric!r}; "
                f"leave eval.mode out, or set it to {direction(self.metric)!r}"
            )
        check_range("eval", self, "every", "batch_size", "patience")
