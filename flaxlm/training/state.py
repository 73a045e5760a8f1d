"""What a run is after a step: everything that decides its future, and nothing else."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp


@flax.struct.dataclass
class TrainState:
    """The state that a checkpoint holds.

    Attributes:
      step: int32 scalar, updates done; the data position is a function of it.
      params: nested dict of arrays.
      opt_state: the optimizer's own tree.
      ema: averaged parameters, or an empty dict where averaging is off.
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
        """Return the parameters that are evaluated: the average where there is one."""
        return self.ema or self.params


def initial_state(params, optimizer, ema: bool) -> TrainState:
    """Return the state at step 0."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.init(params),
        # A copy: the step donates its state, and one buffer cannot be given away twice.
        ema=jax.tree.map(jnp.copy, params) if ema else {},
        skipped=jnp.zeros((), jnp.int32),
        best=jnp.full((), jnp.nan, jnp.float32),
        stale=jnp.zeros((), jnp.int32),
        scored=jnp.zeros((), jnp.int32),
    )
