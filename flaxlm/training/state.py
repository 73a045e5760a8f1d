"""What a run is after a step: everything that decides its future, and nothing else."""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from flaxlm import tree


@flax.struct.dataclass
class TrainState:
    """The state that a checkpoint holds.

    Attributes:
      step: int32 scalar, updates done; the data position is a function of it.
      params: nested dict of arrays.
      opt_state: the optimizer's own tree, of the parameters that are trained.
      ema: averages of the parameters that are trained, or an empty dict where averaging is off.
      skipped: int32 scalar, consecutive updates skipped because they were not finite.
      best: float32 scalar, best evaluation score so far; NaN before the first.
      stale: int32 scalar, evaluations in a row without a better score.
      scored: int32 scalar, the step of the last evaluation.
    """

    step: Any
    params: Any
    opt_state: Any
    ema: Any
    skipped: Any
    best: Any
    stale: Any
    scored: Any

    def averaged(self):
        """Return the parameters that are evaluated: of each the average where there is one."""
        return tree.merge(self.params, self.ema)


def initial_state(params, optimizer, ema: bool, trains: Callable[[str], bool]) -> TrainState:
    """Return the state at step 0; `trains` says of a path whether it is trained."""
    trained, _ = tree.split(params, trains)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.init(trained),
        # A copy: the step donates its state, and one buffer cannot be given away twice.
        ema=jax.tree.map(jnp.copy, trained) if ema else {},
        skipped=jnp.zeros((), jnp.int32),
        best=jnp.full((), jnp.nan, jnp.float32),
        stale=jnp.zeros((), jnp.int32),
        scored=jnp.zeros((), jnp.int32),
    )
