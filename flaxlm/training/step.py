"""The train step: one jitted, state-donating function, made by one constructor.

Training, planning and the tests all take model, optimizer, shardings and compiled functions from
`make_train_step`, so what was planned or tested is what runs.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from flaxlm import sharding, tree
from flaxlm.errors import ConfigError
from flaxlm.models import MODELS, init_params
from flaxlm.models.depth import distances
from flaxlm.training import lora
from flaxlm.training.config import RunConfig
from flaxlm.training.optimizer import make_optimizer, trained
from flaxlm.training.program import Program, abstract_params, make_program


@flax.struct.dataclass
class TrainState:
    """What a run is after a step: everything that decides its future, and nothing else.

    Its scalars are int32, `best` float32.
    """

    step: Any  # updates done; the data position is a function of it
    params: Any  # nested dict of arrays
    opt_state: Any  # the optimizer's own tree, of the parameters that are trained
    ema: Any  # averages of the parameters that are trained, or an empty dict where that is off
    skipped: Any  # consecutive updates skipped because they were not finite
    best: Any  # best evaluation score so far; NaN before the first
    stale: Any  # evaluations in a row without a better score
    scored: Any  # the step of the last evaluation

    def averaged(self):
        """Return the parameters that are evaluated: of each the average where there is one."""
        return tree.merge(self.params, self.ema)


@dataclasses.dataclass(frozen=True)
class TrainProgram(Program):
    """A program that also trains; enter `mesh()` around the use of its functions."""

    optimizer: optax.GradientTransformation
    schedule: Callable
    abstract_state: TrainState  # ShapeDtypeStructs with shardings, to restore a checkpoint into
    init: Callable  # seed -> TrainState, already laid out on the mesh
    begin: Callable  # params -> TrainState at step 0 with these, which are donated
    update: Callable  # (seed, TrainState, batch) -> (TrainState, metrics); donates the state

    @property
    def step(self) -> Callable:
        """`update` with the run's seed."""
        return functools.partial(self.update, np.uint32(self.config.seed))


def check_trained(config: RunConfig) -> None:
    """Raise ConfigError where a pattern of what is frozen, adapted or trained matches nothing."""
    # Without a size of the vocabulary there are no parameters yet; `make_train_step` looks again.
    if config.model.vocab_size and (config.optimizer.freeze or config.lora.rank):
        params = abstract_params(config, config.objective.heads(config.model_name), adapters=True)
        trained(config.optimizer, config.lora, tree.flatten(params))


def _mean(sums: dict) -> dict:
    return {name: total / jnp.maximum(weight, 1e-9) for name, (total, weight) in sums.items()}


def mean_loss(objective, model, trained, frozen, batch, denominators, rng):
    """Return (Σ coefficient · sum / denominator, {name: (sum, weight)}) of rows of a batch."""
    params = tree.merge(trained, frozen)
    terms, metrics = objective.loss(model, params, batch, rng, True)
    loss = sum(
        coefficient * terms[name][0] / denominators[name]
        for name, coefficient in objective.coefficients.items()
    )
    return loss, {**terms, **metrics}


def denominators_of(objective, batch) -> dict:
    """Return what the sum of each term is divided by, from a whole global batch."""
    weights = objective.weights(batch)
    return jax.tree.map(lambda w: jnp.maximum(w.astype(jnp.float32), 1e-9), weights)


def mean_gradients(objective, model, microbatches: int, pin: Callable) -> Callable:
    """Return grads(trained, frozen, batch, denominators, rng) -> ((loss, sums), gradients).

    Gradients are of the mean loss of the batch, by the parameters `trained`: the `frozen` ones are
    not differentiated, so that nothing is computed or kept for them.

    The denominators are of the whole batch, and Σ coefficient · sum / denominator is differentiated
    micro-batch by micro-batch: a mean of micro-batch means would be another loss wherever weights
    differ between them. Micro-batch i holds rows i, i + A, …, so that each is spread over all the
    devices that hold the batch; `pin` keeps its layout [A, B/A, …].
    """
    grads = jax.value_and_grad(
        functools.partial(mean_loss, objective, model), argnums=0, has_aux=True
    )
    if microbatches == 1:
        return grads

    def accumulated(trained, frozen, batch, denominators, rng):
        def split(x):
            x = x.reshape(x.shape[0] // microbatches, microbatches, *x.shape[1:])
            return pin(jnp.swapaxes(x, 0, 1))

        def body(carry, xs):
            micro, index = xs
            more = grads(trained, frozen, micro, denominators, jax.random.fold_in(rng, index))
            return jax.tree.map(jnp.add, carry, more), None

        micros = jax.tree.map(split, batch)
        first = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), micros)
        shapes = jax.eval_shape(grads, trained, frozen, first, denominators, rng)
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        return jax.lax.scan(body, zeros, (micros, jnp.arange(microbatches)))[0]

    return accumulated


def _step(seed, state: TrainState, batch, *, config, grads, optimizer, schedule, trains):
    """One update; a batch whose loss or gradient is not finite changes nothing but counters.

    `seed` is an argument, so that runs which differ in it alone share one compilation.
    """
    rng = jax.random.fold_in(jax.random.key(seed), state.step)
    before, frozen = tree.split(state.params, trains)
    denominators = denominators_of(config.objective, batch)
    (loss, sums), gradients = grads(before, frozen, batch, denominators, rng)
    norm = optax.global_norm(gradients)
    updates, opt_state = optimizer.update(gradients, state.opt_state, before)
    params = optax.apply_updates(before, updates)
    ema = state.ema
    if ema:
        decay = config.train.ema_decay
        ema = jax.tree.map(lambda a, p: a + (1 - decay) * (p - a).astype(a.dtype), ema, params)
    finite = jnp.isfinite(loss) & jnp.isfinite(norm)
    # Once the run has to stop, nothing may change any more: the host hears of it steps later.
    limit = config.train.skip_nonfinite
    take = finite & (state.skipped <= limit)
    new = (params, opt_state, ema)
    old = (before, state.opt_state, state.ema)
    params, opt_state, ema = jax.tree.map(lambda n, o: jnp.where(take, n, o), new, old)
    skipped = jnp.where(finite, 0, state.skipped + 1)
    skipped = jnp.where(state.skipped > limit, state.skipped, skipped)
    metrics = _mean(sums) | {
        "loss": loss,
        "grad_norm": norm,
        "learning_rate": jnp.asarray(schedule(state.step), jnp.float32),
        "skipped": skipped,
    }
    step, params = state.step + 1, tree.merge(params, frozen)
    after = {"params": params, "opt_state": opt_state, "ema": ema, "skipped": skipped}
    return state.replace(step=step, **after), metrics


def check_batch(config: RunConfig, mesh: Mesh) -> None:
    """Raise ConfigError unless every micro-batch divides over the mesh's batch axes."""
    width, parts = sharding.batch_width(mesh, config.sharding), config.train.microbatches
    rows = config.train.batch_size // parts
    if rows % width:
        raise ConfigError(
            f"train.batch_size={config.train.batch_size} in train.microbatches={parts} makes "
            f"{rows} rows, which do not divide over the {width} devices of the mesh's batch axes; "
            f"use a multiple of {width * parts}"
        )


def make_train_step(config: RunConfig, mesh: Mesh, total_steps: int) -> TrainProgram:
    """Return the TrainProgram of a config on a mesh.

    Args:
      config, mesh: of the run; see `sharding.make_mesh`.
      total_steps: the run's last step, which decaying schedules end at.

    Raises:
      ConfigError: the batch does not divide over the mesh, or objective and model do not fit.
    """
    check_batch(config, mesh)
    program = make_program(config, mesh, adapters=True)
    axes, batch_sharding = MODELS[config.model_name].axes, program.batch_sharding
    replicated = NamedSharding(mesh, PartitionSpec())
    paths = tree.flatten(program.abstract_params)
    trains = trained(config.optimizer, config.lora, paths).__contains__
    decays = config.optimizer.layer_decay != 1
    depths = distances(config.model, program.abstract_params) if decays else None
    optimizer, schedule = make_optimizer(config.optimizer, total_steps, depths)

    def pin(x):
        spread = NamedSharding(mesh, PartitionSpec(None, *batch_sharding.spec))
        return jax.lax.with_sharding_constraint(x, spread)

    def begin(params):
        ours, zero = tree.split(params, trains)[0], functools.partial(jnp.zeros, (), jnp.int32)
        return TrainState(
            step=zero(),
            params=params,
            opt_state=optimizer.init(ours),
            # A copy: the step donates its state, and one buffer cannot be given away twice.
            ema=jax.tree.map(jnp.copy, ours) if config.train.ema_decay else {},
            skipped=zero(),
            best=jnp.full((), jnp.nan, jnp.float32),
            stale=zero(),
            scored=zero(),
        )

    def init(seed):
        # The forward pass over these rows is dead code, but its pins want rows that divide.
        rows, heads = sharding.batch_width(mesh, config.sharding), program.model.head_sizes
        key = jax.random.key(seed)
        params = init_params(config.model_name, config.model, heads, key, rows)
        return begin(lora.add(params, config.lora, axes, seed))

    with program.mesh():
        abstract = jax.eval_shape(begin, program.abstract_params)
    places = jax.tree.map(lambda leaf: leaf.sharding, program.abstract_params)
    state = sharding.like_params(abstract, abstract.params, places, mesh)
    step = functools.partial(
        _step,
        config=config,
        grads=mean_gradients(config.objective, program.model, config.train.microbatches, pin),
        optimizer=optimizer,
        schedule=schedule,
        trains=trains,
    )
    return TrainProgram(
        **vars(program),
        optimizer=optimizer,
        schedule=schedule,
        abstract_state=jax.tree.map(
            lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), abstract, state
        ),
        init=jax.jit(init, out_shardings=state),
        begin=jax.jit(begin, out_shardings=state, donate_argnums=0),
        update=jax.jit(
            step,
            in_shardings=(replicated, state, batch_sharding),
            out_shardings=(state, replicated),
            donate_argnums=1,
        ),
    )
