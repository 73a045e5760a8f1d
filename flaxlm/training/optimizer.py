"""Optimizers and learning-rate schedules, as optax transformations chosen by name."""

import dataclasses
from collections.abc import Iterable, Mapping

import jax.numpy as jnp
import numpy as np
import optax

from flaxlm import tree
from flaxlm.errors import ConfigError, check_range, choose
from flaxlm.training import lora


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """An optimizer, its schedule, clipping and weight decay.

    Attributes:
      no_decay: regexes of parameter paths that weight decay leaves alone.
      layer_decay: what an update is multiplied by for each layer between a parameter and the top
        (Howard & Ruder, 2018; Clark et al., 2020); `models.depth` counts. Of the learning rate
        and the weight decay alike; 1 is off.
    """

    name: str = "adamw"  # adamw, adafactor, sgd, lion
    learning_rate: float = 1e-3  # the peak, reached after `warmup_steps` of linear warm-up
    schedule: str = "cosine"  # a key of `SCHEDULES`
    warmup_steps: int = 0  # steps of linear warm-up; see warmup_fraction
    warmup_fraction: float = 0.0  # share of the run's steps that `warmup_steps` is, where it is 0
    final_learning_rate: float = 0.0  # where a decaying schedule ends
    decay_steps: int = 0  # the step at which it ends; 0 is the run's last step
    cooldown: float = 0.2  # share of the steps that `wsd` spends on its last, linear descent
    b1: float = 0.9  # decay of the first moment (adamw, lion)
    b2: float = 0.999  # decay of the second moment (adamw, lion)
    epsilon: float = 1e-8  # of adamw
    momentum: float = 0.9  # of sgd
    weight_decay: float = 0.01  # times the learning rate; 0 is off
    no_decay: tuple[str, ...] = (r"bias$", r"norm", r"scale$")
    clip_norm: float = 1.0  # bound on the global gradient norm; 0 is off
    freeze: tuple[str, ...] = ()  # regexes of the paths of parameters that are not trained
    layer_decay: float = 1.0

    def __post_init__(self):
        choose("optimizer.name", self.name, OPTIMIZERS)
        choose("optimizer.schedule", self.schedule, SCHEDULES)
        if self.learning_rate <= 0:
            raise ConfigError(f"optimizer.learning_rate={self.learning_rate} must be positive")
        check_range("optimizer", self, "warmup_steps", "decay_steps", "weight_decay", "clip_norm")
        check_range("optimizer", self, "cooldown", "warmup_fraction", high=1)
        tree.check_patterns("optimizer.no_decay", self.no_decay)
        tree.check_patterns("optimizer.freeze", self.freeze)
        if not 0 < self.layer_decay <= 1:
            raise ConfigError(f"optimizer.layer_decay={self.layer_decay} must be in (0, 1]")
        if self.warmup_steps and self.warmup_fraction:
            raise ConfigError(
                f"optimizer.warmup_steps={self.warmup_steps} and optimizer.warmup_fraction="
                f"{self.warmup_fraction}: set one of them to 0"
            )


def _constant(config: OptimizerConfig, steps: int):
    return optax.constant_schedule(config.learning_rate)


def _linear(config: OptimizerConfig, steps: int):
    return optax.linear_schedule(config.learning_rate, config.final_learning_rate, max(1, steps))


def _cosine(config: OptimizerConfig, steps: int):
    alpha = config.final_learning_rate / config.learning_rate
    return optax.cosine_decay_schedule(config.learning_rate, max(1, steps), alpha)


def _inverse_sqrt(config: OptimizerConfig, steps: int):
    """Return lr · √(w / (w + t)), t from the end of warm-up (Vaswani et al., 2017, eq. 3)."""
    width = max(1, config.warmup_steps)
    # Joined schedules are evaluated before their beginning too, hence the maximum.
    return lambda step: config.learning_rate * (width / (width + jnp.maximum(step, 0))) ** 0.5


def _wsd(config: OptimizerConfig, steps: int):
    """Warm-up, stable, then a linear descent over the last `cooldown` share (Hu et al., 2024)."""
    descent = max(1, round(steps * config.cooldown))
    return optax.join_schedules(
        [optax.constant_schedule(config.learning_rate), _linear(config, descent)],
        [max(0, steps - descent)],
    )


SCHEDULES = {
    "constant": _constant,
    "linear": _linear,
    "cosine": _cosine,
    "inverse_sqrt": _inverse_sqrt,
    "wsd": _wsd,
}


def make_schedule(config: OptimizerConfig, total_steps: int) -> optax.Schedule:
    """Return step -> learning rate; the first step of a warm-up is already above zero."""
    if config.warmup_fraction:
        steps = round(config.warmup_fraction * total_steps)
        config = dataclasses.replace(config, warmup_steps=steps, warmup_fraction=0.0)
    end = config.decay_steps or total_steps
    main = SCHEDULES[config.schedule](config, end - config.warmup_steps)
    if not config.warmup_steps:
        return main
    warmup = optax.linear_schedule(
        config.learning_rate / config.warmup_steps, config.learning_rate, config.warmup_steps - 1
    )
    return optax.join_schedules([warmup, main], [config.warmup_steps])


def _adamw(config, schedule, mask):
    return optax.adamw(
        schedule, config.b1, config.b2, config.epsilon, weight_decay=config.weight_decay, mask=mask
    )


def _adafactor(config, schedule, mask):
    """Shazeer & Stern (2018), with weight decay scaled by the learning rate as in AdamW."""
    return optax.chain(
        optax.adafactor(learning_rate=None, multiply_by_parameter_scale=True),
        optax.add_decayed_weights(-config.weight_decay, mask),
        optax.scale_by_schedule(schedule),
    )


def _sgd(config, schedule, mask):
    return optax.chain(
        optax.add_decayed_weights(config.weight_decay, mask),
        optax.sgd(schedule, momentum=config.momentum or None),
    )


def _lion(config, schedule, mask):
    return optax.lion(schedule, config.b1, config.b2, weight_decay=config.weight_decay, mask=mask)


OPTIMIZERS = {"adamw": _adamw, "adafactor": _adafactor, "sgd": _sgd, "lion": _lion}


def decay_mask(config: OptimizerConfig, params):
    """Return a tree of booleans: True where weight decay applies."""
    rules = [(pattern, False) for pattern in config.no_decay]
    return tree.map_paths(lambda path, _: tree.first_match(rules, path, True), params)


def trained(config: OptimizerConfig, adapters: lora.LoraConfig, paths: Iterable[str]) -> set[str]:
    """Return the paths of the parameters that a run trains.

    ConfigError where a pattern matches nothing, or nothing is left.
    """
    paths = list(paths)
    frozen = tree.select("optimizer.freeze", config.freeze, paths)
    left = lora.trainable(adapters, paths) - frozen
    if not left:
        raise ConfigError(f"optimizer.freeze={config.freeze!r} leaves no parameter to train")
    return left


def scale_by_depth(decay: float, distances: Mapping[str, np.ndarray]):
    """Return the transformation that multiplies updates by decay^distance; it has no state.

    `distances` are {path: number, or numbers along the leading dimension}.
    """

    def scale(path: str, update):
        factor = np.float32(decay) ** distances[path]
        factor = factor.reshape(factor.shape + (1,) * (update.ndim - factor.ndim))
        return update * factor.astype(update.dtype)

    return optax.stateless(lambda updates, params: tree.map_paths(scale, updates))


def make_optimizer(
    config: OptimizerConfig, total_steps: int, distances: Mapping[str, np.ndarray] | None = None
):
    """Return (optax transformation, schedule), see `make_schedule` and `scale_by_depth`."""
    schedule = make_schedule(config, total_steps)
    update = OPTIMIZERS[config.name](config, schedule, lambda params: decay_mask(config, params))
    if config.clip_norm:
        update = optax.chain(optax.clip_by_global_norm(config.clip_norm), update)
    if config.layer_decay != 1:
        update = optax.chain(update, scale_by_depth(config.layer_decay, distances))
    return update, schedule
