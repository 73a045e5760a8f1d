"""What every objective has. An objective knows rows, batches and losses, not how a model works.

Dimension key: B batch, L length, M encoder length, P predictions, C classes, V vocabulary.
"""

import abc
import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from flaxlm.data.order import Plan, Raw, RowRandom
from flaxlm.data.pipeline import Batch
from flaxlm.errors import ConfigError, check_range, nearest
from flaxlm.models import MODELS, Model, losses

Sums = dict[str, tuple[jax.Array, jax.Array]]
Spec = dict[str, tuple[tuple[int, ...], np.dtype]]


@dataclasses.dataclass(frozen=True)
class Objective(abc.ABC):
    """Base of the objectives."""

    label_smoothing: float = 0.0  # ε of the training loss; evaluation has none
    z_loss: float = 0.0  # coefficient of (log Z)² in the training loss; evaluation has none

    name: ClassVar[str]  # its key in `OBJECTIVES`
    decomposes: ClassVar[bool] = True  # the loss of a batch is the sum over its rows
    generates: ClassVar[bool] = False  # its task is judged by text that the model writes
    # `transformers`' name for what its classification head predicts; '': one label for each text.
    problem: ClassVar[str] = ""
    perplexity_of: ClassVar[str] = "loss"  # the term whose mean is nats a token; '': there is none
    head: ClassVar[str] = "lm"  # what its loss is read off

    def __post_init__(self):
        check_range("objective", self, "label_smoothing", high=0.999)
        check_range("objective", self, "z_loss", high=1)

    @property
    def coefficients(self) -> dict[str, float]:
        """Return what each term's mean is multiplied by in the total loss."""
        return {"loss": 1.0}

    @property
    def scores_every_token(self) -> bool:
        """Whether evaluation scores each token of the text once: then nats a byte have meaning."""
        return False

    @classmethod
    def fits(cls, row: Model) -> bool:
        """Return whether it works on a row of MODELS; here: one that reads what it judges."""
        return cls.head in row.heads and not row.encodes

    @classmethod
    def models(cls) -> list[str]:
        """Return the names of the models that it works on."""
        return [name for name, row in MODELS.items() if cls.fits(row)]

    def heads(self, model_name: str) -> dict[str, int]:
        """Return `{head: outputs}`, one for each label, to build the model with; 0 is its own size.

        ConfigError for a model that it does not work on.
        """
        valid = self.models()
        if model_name not in valid:
            raise ConfigError(
                f"objective {self.name} cannot train model {model_name!r}"
                f"{nearest(model_name, valid)}; it works on: {', '.join(valid)}"
            )
        return {self.head: len(getattr(self, "labels", ()))}

    def for_model(self, model_name: str) -> "Objective":
        """Return this objective with its rows laid out for a model of MODELS."""
        self.heads(model_name)
        return self

    @abc.abstractmethod
    def batch_spec(self, batch_size: int, length: int) -> Spec:
        """Return `{name: (shape, dtype)}` of a batch, from config alone."""

    @abc.abstractmethod
    def plan(self, source: Any, length: int, tokenizer, *, seed: int, shuffle: bool) -> Plan:
        """Return the order of a source: a TokenCache, or a list of examples."""

    @abc.abstractmethod
    def preprocess(self, raw: Raw, rng: RowRandom, tokenizer, length: int) -> Batch:
        """Return the batch of a plan's rows; numpy, all rows at once."""

    def model_inputs(self, batch) -> Batch:
        """Return the part of a batch that the model is called with, its arrays [rows, L]."""
        return batch

    def weights(self, batch) -> dict[str, jax.Array]:
        """Return the weight of each term in training, from the batch alone, as `loss` does."""
        return {"loss": jnp.sum(batch["weights"])}

    def loss(self, model, params, batch, rng, train: bool) -> tuple[Sums, Sums]:
        """Return ({term: (Σ nats, weight)}, {metric: (Σ, weight)}) of a batch.

        The model is built with this objective's heads. `rng` is a key for dropout, None in
        evaluation; `train` turns dropout, label smoothing and z-loss on.
        """
        logits = apply(model, params, batch, rng, train)["lm"]
        total, weight, correct = losses.cross_entropy(
            logits, batch["targets"], batch["weights"], *self.penalties(train)
        )
        return {"loss": (total, weight)}, {"accuracy": (correct, weight)}

    def request(self, prompt: str, tokenizer) -> str | list[int]:
        """Return what a model trained with this objective is given for a user's prompt."""
        return prompt

    def predict(self, model, params, batch) -> dict[str, jax.Array]:
        """Return `{name: [B, ...]}`; here each row's log-likelihood in nats and its targets."""
        logits = apply(model, params, batch, None, False)["lm"]
        return {
            "log_likelihood": losses.log_likelihood(logits, batch["targets"], batch["weights"]),
            "num_targets": jnp.sum(batch["weights"], axis=-1),
        }

    def penalties(self, train: bool) -> tuple[float, float]:
        """Return the label smoothing and the z-loss of a cross entropy: of training alone."""
        return (self.label_smoothing, self.z_loss) if train else (0.0, 0.0)


def apply(model, params, batch, rng, train: bool) -> dict[str, jax.Array]:
    """Return the model's outputs; `rng` feeds dropout, in training only."""
    rngs = {"dropout": rng} if train else None
    return model.apply({"params": params}, batch, train=train, rngs=rngs)


def without(objective, *fields: str) -> None:
    """Raise ConfigError for a field that is not 0 and that the objective does not use."""
    for field in fields:
        if value := getattr(objective, field):
            raise ConfigError(f"objective.{field}={value}: {objective.name} does not use it")


def real_rows(batch) -> jax.Array:
    """Return float32 [B], 0 on rows that only fill the batch."""
    return (batch["example_ids"] >= 0).astype(jnp.float32)


def ints(**shapes: tuple[int, ...]) -> Spec:
    """Return int32 entries of a batch spec."""
    return {name: (shape, np.dtype(np.int32)) for name, shape in shapes.items()}


def floats(**shapes: tuple[int, ...]) -> Spec:
    """Return float32 entries of a batch spec."""
    return {name: (shape, np.dtype(np.float32)) for name, shape in shapes.items()}


def shift_right(targets: np.ndarray, positions: np.ndarray, start: int) -> np.ndarray:
    """Return decoder inputs [B, L]: targets shifted right, `start` where a segment begins."""
    tokens = np.empty_like(targets)
    tokens[:, 1:] = targets[:, :-1]
    tokens[positions == 0] = start
    return tokens
