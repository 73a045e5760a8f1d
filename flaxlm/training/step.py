"""The train step: one jitted, state-donating function, made by one constructor.

Training, evaluation, planning and the tests all take the model, the optimizer, the shardings and
the compiled functions from `make_train_step`, so what was planned or tested is what runs.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from flaxlm import sharding, tree
from flaxlm.errors import ConfigError
from flaxlm.models import MODELS
from flaxlm.models.depth import distances
from flaxlm.training import lora
from flaxlm.training.config import RunConfig
from flaxlm.training.optimizer import make_optimizer, trained
from flaxlm.training.state import TrainState, initial_state


@dataclasses.dataclass(frozen=True)
class Program:
    """A run's model and compiled functions on one mesh; enter `mesh()` around their use.

    Attributes:
      init: seed -> TrainState, already laid out on the mesh.
      begin: params -> TrainState at step 0 with these, which are donated.
      update: (TrainState, batch, seed) -> (TrainState, metrics); the state given in is donated.
      sums: (params, batch) -> {name: (sum, weight)} of the evaluation loss and its metrics.
      predict: (params, batch) -> {name: [B, …]}.
      judge: (params, batch) -> (what `sums` gives, what `predict` gives), in one pass.
      abstract_state: ShapeDtypeStructs with shardings, what a checkpoint is restored into.
    """

    config: RunConfig
    device_mesh: Mesh
    model: Any
    optimizer: Any
    schedule: Callable
    abstract_state: TrainState
    batch_sharding: NamedSharding
    init: Callable
    begin: Callable
    update: Callable
    sums: Callable
    predict: Callable
    judge: Callable

    @property
    def objective(self):
        """Return the run's objective."""
        return self.config.objective

    def step(self, state: TrainState, batch):
        """Return (TrainState, metrics) after one batch; the state given in is donated."""
        return self.update(state, batch, np.uint32(self.config.seed))

    def mesh(self):
        """Return the context in which the functions are traced and called."""
        return sharding.use(self.device_mesh, self.config.sharding)


def build_model(config: RunConfig):
    """Return the Linen module of a config, with the heads that its objective asks for."""
    heads = config.objective.heads(config.model_name)
    return MODELS[config.model_name].module_class(config.model, head_sizes=tuple(heads.items()))


def zeros_batch(spec: dict) -> dict:
    """Return a batch of zeros with the shapes of a batch spec, [B, …]."""
    return {name: jnp.zeros(shape, dtype) for name, (shape, dtype) in spec.items()}


def init_params(config: RunConfig, model, seed: int):
    """Return freshly initialised parameters, a function of (config, seed) alone."""
    # Only shapes matter here: under jit the forward pass itself is dead code.
    rows = config.train.batch_size // config.train.microbatches
    spec = config.objective.batch_spec(rows, config.train.length)
    inputs = config.objective.model_inputs(zeros_batch(spec))
    variables = model.init({"params": jax.random.key(seed)}, inputs, train=False)
    return lora.add(variables["params"], config.lora, MODELS[config.model_name].axes, seed)


def check_trained(config: RunConfig) -> None:
    """Raise ConfigError where a pattern of what is frozen, adapted or trained matches nothing."""
    if config.optimizer.freeze or config.lora.rank:
        model = build_model(config)
        params = jax.eval_shape(lambda: init_params(config, model, 0))
        trained(config.optimizer, config.lora, tree.flatten(params))


def _mean(sums: dict) -> dict:
    return {name: total / jnp.maximum(weight, 1e-9) for name, (total, weight) in sums.items()}


def split_batch(batch: dict, parts: int, pin: Callable) -> dict:
    """Return [A, B/A, …] micro-batches: rows j, j + A, … go to micro-batch j.

    A strided split keeps every micro-batch spread over all the devices that hold the batch.
    """

    def split(x):
        x = x.reshape(x.shape[0] // parts, parts, *x.shape[1:])
        return pin(jnp.swapaxes(x, 0, 1))

    return jax.tree.map(split, batch)


def mean_gradients(
    objective,
    model,
    microbatches: int,
    pin: Callable,
    trains: Callable[[str], bool] = lambda path: True,
) -> Callable:
    """Return grads(params, batch, rng) -> (gradients, loss, metric sums) of the batch's mean loss.

    Gradients are of the parameters whose paths `trains` accepts: the others are not differentiated,
    so that nothing is computed or kept for them.

    The denominators are summed over the whole global batch first, then
    Σ coefficient · sum / denominator is differentiated micro-batch by micro-batch; a mean of
    micro-batch means would be another loss wherever weights differ between them.
    """

    def part(trained, frozen, batch, denominators, rng):
        params = tree.merge(trained, frozen)
        terms, metrics = objective.loss(model, params, batch, rng, True)
        loss = sum(
            coefficient * terms[name][0] / denominators[name]
            for name, coefficient in objective.coefficients.items()
        )
        return loss, {**terms, **metrics}

    def grads(params, batch, rng):
        denominators = jax.tree.map(
            lambda w: jnp.maximum(w.astype(jnp.float32), 1e-9), objective.weights(batch)
        )
        trained, frozen = tree.split(params, trains)
        value_and_grad = functools.partial(jax.value_and_grad(part, has_aux=True), trained, frozen)
        if microbatches == 1:
            (loss, sums), gradients = value_and_grad(batch, denominators, rng)
            return gradients, loss, sums

        def body(carry, xs):
            micro, index = xs
            (loss, sums), gradients = value_and_grad(
                micro, denominators, jax.random.fold_in(rng, index)
            )
            return jax.tree.map(jnp.add, carry, (gradients, loss, sums)), None

        micros = split_batch(batch, microbatches, pin)
        shapes = jax.eval_shape(
            lambda m: value_and_grad(m, denominators, rng),
            jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), micros),
        )
        (loss, sums), gradients = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        (gradients, loss, sums), _ = jax.lax.scan(
            body, (gradients, loss, sums), (micros, jnp.arange(microbatches))
        )
        return gradients, loss, sums

    return grads


def _step(state: TrainState, batch, seed, *, config, grads, optimizer, schedule, trains):
    """One update; a batch whose loss or gradient is not finite changes nothing but counters.

    `seed` is an argument, so that runs which differ in it alone share one compilation.
    """
    rng = jax.random.fold_in(jax.random.key(seed), state.step)
    gradients, loss, sums = grads(state.params, batch, rng)
    norm = optax.global_norm(gradients)
    before, frozen = tree.split(state.params, trains)
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
    skipped = jnp.where(
        state.skipped > limit, state.skipped, jnp.where(finite, 0, state.skipped + 1)
    )
    metrics = _mean(sums) | {
        "loss": loss,
        "grad_norm": norm,
        "learning_rate": jnp.asarray(schedule(state.step), jnp.float32),
        "skipped": skipped,
    }
    state = state.replace(
        step=state.step + 1,
        params=tree.merge(params, frozen),
        opt_state=opt_state,
        ema=ema,
        skipped=skipped,
    )
    return state, metrics


def check_batch(config: RunConfig, mesh: Mesh) -> None:
    """Raise ConfigError unless every micro-batch divides over the mesh's batch axes."""
    width = 1
    for axis in config.sharding.table()["batch"]:
        width *= mesh.shape[axis]
    rows = config.train.batch_size // config.train.microbatches
    if rows % width:
        raise ConfigError(
            f"train.batch_size={config.train.batch_size} in train.microbatches="
            f"{config.train.microbatches} makes {rows} rows, which do not divide over the "
            f"{width} devices of the mesh's batch axes; use a multiple of "
            f"{width * config.train.microbatches}"
        )


def make_train_step(config: RunConfig, mesh: Mesh, total_steps: int) -> Program:
    """Return the Program of a config on a mesh.

    Args:
      config: the run.
      mesh: from `sharding.make_mesh`.
      total_steps: the run's last step, which decaying schedules end at.

    Raises:
      ConfigError: the batch does not divide over the mesh, or objective and model do not fit.
    """
    check_batch(config, mesh)
    model, objective = build_model(config), config.objective
    axes = MODELS[config.model_name].axes
    batch_sharding = sharding.batch_sharding(mesh, config.sharding)
    replicated = NamedSharding(mesh, PartitionSpec())

    def pin(x):
        return jax.lax.with_sharding_constraint(
            x, NamedSharding(mesh, PartitionSpec(None, *batch_sharding.spec))
        )

    def begin(params):
        return initial_state(params, optimizer, bool(config.train.ema_decay), trains)

    def init(seed):
        return begin(init_params(config, model, seed))

    with sharding.use(mesh, config.sharding):
        abstract = jax.eval_shape(lambda: init_params(config, model, config.seed))
        trains = trained(config.optimizer, config.lora, tree.flatten(abstract)).__contains__
        depths = distances(config.model, abstract)
        optimizer, schedule = make_optimizer(config.optimizer, total_steps, depths)
        abstract = jax.eval_shape(begin, abstract)
        params = sharding.param_shardings(axes, abstract.params, mesh, config.sharding)
        state = sharding.like_params(abstract, abstract.params, params, mesh)
    abstract = jax.tree.map(
        lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), abstract, state
    )
    step = functools.partial(
        _step,
        config=config,
        grads=mean_gradients(objective, model, config.train.microbatches, pin, trains),
        optimizer=optimizer,
        schedule=schedule,
        trains=trains,
    )

    def sums(params, batch):
        terms, metrics = objective.loss(model, params, batch, None, False)
        return {**terms, **metrics}

    predict = functools.partial(objective.predict, model)

    def judge(params, batch):
        # The model stands in both; XLA finds that and runs it once.
        return sums(params, batch), predict(params, batch)

    reads = {"in_shardings": (state.params, batch_sharding), "out_shardings": replicated}
    return Program(
        config=config,
        device_mesh=mesh,
        model=model,
        optimizer=optimizer,
        schedule=schedule,
        abstract_state=abstract,
        batch_sharding=batch_sharding,
        init=jax.jit(init, out_shardings=state),
        begin=jax.jit(begin, out_shardings=state, donate_argnums=0),
        update=jax.jit(
            step,
            in_shardings=(state, batch_sharding, replicated),
            out_shardings=(state, replicated),
            donate_argnums=0,
        ),
        sums=jax.jit(sums, **reads),
        predict=jax.jit(predict, **reads),
        judge=jax.jit(judge, **reads),
    )


def parameter_count(config: RunConfig) -> int:
    """Return the number of parameters, without rows that only pad the vocabulary."""
    model = build_model(config)
    params = jax.eval_shape(lambda: init_params(config, model, 0))
    padding = sum(
        (leaf.shape[-2] - config.model.vocab_size) * leaf.shape[-1]
        for path, leaf in tree.flatten(params).items()
        if path.endswith("embed/token")
    )
    return tree.count(params) - padding
