"""A run's model on a mesh and the compiled functions that read it; `step.py` adds the training."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from flaxlm import models, sharding
from flaxlm.errors import ConfigError
from flaxlm.interop.pretrained import SCHEME
from flaxlm.models import MODELS, build
from flaxlm.processes import barrier
from flaxlm.trained import TrainedModel
from flaxlm.training import lora
from flaxlm.training.config import RunConfig


@dataclasses.dataclass(frozen=True)
class Program:
    """A run's model and the functions that read it, on one mesh; enter `mesh()` to call them."""

    config: RunConfig
    device_mesh: Mesh
    model: Any
    abstract_params: dict  # ShapeDtypeStructs with shardings, what parameters are loaded into
    batch_sharding: NamedSharding
    sums: Callable  # (params, batch) -> {name: (sum, weight)} of the evaluation loss and metrics
    predict: Callable  # (params, batch) -> {name: [B, …]}
    judge: Callable  # (params, batch) -> (what `sums` gives, what `predict` gives), in one pass
    facts: dict = dataclasses.field(default_factory=dict, kw_only=True)  # of its `TrainedModel`

    @property
    def objective(self):
        """Return the run's objective."""
        return self.config.objective

    @property
    def heads(self) -> dict[str, int]:
        """{head: output size} that the model is built with, 0 for the vocabulary."""
        return dict(self.model.head_sizes)

    def mesh(self):
        """Return the context in which the functions are traced and called."""
        return sharding.use(self.device_mesh, self.config.sharding)

    def trained(self, params: dict, tokenizer) -> TrainedModel:
        """Return the model with parameters as `inference` asks it."""
        config, facts = self.config, {"trained_here": True} | self.facts
        lengths = [config.train.length] if facts["trained_here"] else []
        if config.init.startswith(SCHEME) and config.model.positions == "rotary":
            lengths.append(config.model.max_length)
        return TrainedModel(
            config.model_name,
            self.model,
            params,
            tokenizer,
            context=max(lengths, default=0),
            mesh=self.device_mesh,
            sharding=config.sharding,
            **facts,
        )


def abstract_params(config: RunConfig, heads, adapters: bool = False) -> dict:
    """Return the shapes and dtypes of a run's parameters, `adapters` with its low-rank factors."""
    params = models.abstract_params(config.model_name, config.model, heads)
    if not adapters:
        return params
    axes = MODELS[config.model_name].axes
    return jax.eval_shape(lambda p: lora.add(p, config.lora, axes, config.seed), params)


def make_program(
    config: RunConfig, mesh: Mesh, heads: dict[str, int] | None = None, adapters: bool = False
) -> Program:
    """Return the Program of a config on a mesh.

    Args:
      config, mesh: of the run; see `sharding.make_mesh`.
      heads: {head: output size} to build the model with; None: those of the objective.
      adapters: whether the run's low-rank factors are parameters of their own. A reader has no
        place for them: they are merged into their kernels when the run is read.

    Raises:
      ConfigError: objective and model do not fit.
    """
    if jax.process_count() > 1 and mesh.size == jax.device_count():
        barrier("the first collectives")
        sharding.connect(mesh)
    objective, name = config.objective, config.model_name
    if not config.model.vocab_size:
        raise ConfigError("model.vocab_size=0, what the tokenizer has: open its run, or set it")
    heads = objective.heads(name) if heads is None else heads
    model, params = build(name, config.model, heads), abstract_params(config, heads, adapters)
    places = sharding.param_shardings(MODELS[name].axes, params, mesh, config.sharding)
    batch_sharding = sharding.batch_sharding(mesh, config.sharding)

    def sums(params, batch):
        terms, metrics = objective.loss(model, params, batch, None, False)
        return {**terms, **metrics}

    jit = functools.partial(
        jax.jit,
        in_shardings=(places, batch_sharding),
        out_shardings=NamedSharding(mesh, PartitionSpec()),
    )
    sums, predict = jit(sums), jit(functools.partial(objective.predict, model))

    def judge(params, batch):
        # The model stands in both; XLA finds that and runs it once.
        return sums(params, batch), predict(params, batch)

    return Program(
        config=config,
        device_mesh=mesh,
        model=model,
        abstract_params=jax.tree.map(
            lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
            params,
            places,
        ),
        batch_sharding=batch_sharding,
        sums=sums,
        predict=predict,
        judge=jit(judge),
    )
