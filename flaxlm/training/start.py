"""Where a run starts: this workdir → `init` (another run, or a Hugging Face model) → scratch."""

import dataclasses
import re
from collections.abc import Callable

import jax

from flaxlm import sharding, tree
from flaxlm.errors import ConfigError, Unsafe
from flaxlm.interop.pretrained import SCHEME
from flaxlm.models import MODELS
from flaxlm.training import lora, manifest, reading
from flaxlm.training.checkpoint import Checkpointer
from flaxlm.training.head_labels import in_order, labels_of_run, order_of_head
from flaxlm.training.inputs import Inputs
from flaxlm.training.opened import HubPlan, hub_plan, is_head
from flaxlm.training.program import Program
from flaxlm.training.step import TrainProgram


def restore_or_init(
    program: TrainProgram, saved: Checkpointer, inputs: Inputs, allow_missing: str, say: Callable
):
    """Return (TrainState, step) to go on from; what was loaded is said.

    Args:
      program: its abstract state says what to load, and where each part lies.
      saved: the workdir's checkpoints.
      inputs: the run's inputs.
      allow_missing: regex of parameters that may start fresh under `init`.
      say: prints one line.

    Raises:
      StorageError: there are checkpoints and none can be read, or no room for one.
      ConfigError: `init` lacks parameters, or `allow_missing` is no regex.
      Unsafe: a checkpoint, here or of `init`, has parameters of other shapes.
    """
    try:
        re.compile(allow_missing)
    except re.error as error:
        raise ConfigError(f"--allow_missing={allow_missing!r} is not a regex: {error}") from None
    saved.probe(program.abstract_state)
    axes, config = MODELS[program.config.model_name].axes, program.config.sharding
    for line in sharding.unsplit(axes, program.abstract_params, program.device_mesh, config):
        say(f"not split evenly: {line}")
    # 1. This workdir: a run that was stopped goes on.
    if saved.latest() is not None:
        state, record = saved.restore(program.abstract_state)
        promise = manifest.promise(record.fingerprint, manifest.fingerprint())
        say(f"resuming from step {record.step}: {promise}")
        return state, record.step
    # 2. `init`: the parameters of another run. What it cannot give is said before anything is made.
    if program.config.init and program.config.init_weights:
        source = init_source(program, allow_missing)
        params = source.load(program.init(program.config.seed).params, say)
        # Optimizer and averages start anew, from these parameters.
        state = program.begin(params)
    # 3. Scratch.
    else:
        say(f"starting from scratch with seed {program.config.seed}")
        state = program.init(program.config.seed)
    return state, 0


def init_source(program: Program, allow_missing: str):
    """Return what a run takes from its `init`, checked; see `InitFromRun` for what is raised."""
    if not program.config.init.startswith(SCHEME):
        return InitFromRun.of(program, allow_missing)
    return InitFromHub(program, hub_plan(program, allow_missing, is_head))


@dataclasses.dataclass(frozen=True)
class InitFromHub:
    """What a run takes from a Hugging Face directory."""

    program: Program
    plan: HubPlan

    def load(self, params, say: Callable):
        """Return `params` with what the directory has; print loaded, fresh and ignored."""
        asked, fresh = map(tree.flatten, (self.program.abstract_params, params))
        loaded = self.plan.load(asked, fresh, quiet=jax.process_index() != 0)
        say(f"init from {self.plan.plan}")
        return tree.unflatten(fresh | loaded)


@dataclasses.dataclass(frozen=True)
class InitFromRun:
    """What a run takes from its `init`.

    A parameter may start fresh only if it belongs to a head of this objective, which `init` was
    not trained with, if it is a low-rank factor, or if `allow_missing` matches its path. Factors
    of `init` itself are merged into their kernels.

    Attributes:
      program: of the run.
      source: the checkpoint of `init` that it comes from.
      asked: `{path: ShapeDtypeStruct}` of the parameters that it has.
      fresh: paths of those that it lacks.
      order: where the outputs of its head stand that are this run's labels.
    """

    program: Program
    source: reading.Source
    asked: dict
    fresh: list[str]
    order: list[int]

    @classmethod
    def of(cls, program: Program, allow_missing: str) -> "InitFromRun":
        """Return what `program` takes; see the class, and `restore_or_init` for what is raised."""
        init = program.config.init
        source = reading.find(init, "")
        there = reading.param_leaves(source.saved.manifest(source.step))
        wanted = tree.flatten(program.abstract_params)
        asked = {p: x for p, x in wanted.items() if p in there and not lora.is_adapter(p)}
        labels = labels_of_run(init)
        order, other = order_of_head(program.config, labels, asked, init, allow_missing)
        asked = {path: leaf for path, leaf in asked.items() if path not in other}
        fresh = [path for path in wanted if path not in asked]
        refused = [
            path
            for path in fresh
            if not (is_head(path) or lora.is_adapter(path))
            and not (allow_missing and re.search(allow_missing, path))
        ]
        if refused:
            raise ConfigError(
                f"init={init} has no {', '.join(refused)}; what may start fresh is named by "
                f"--allow_missing='{tree.pattern_of(refused)}'"
            )
        try:
            source.check(asked, program)
        except Unsafe as error:
            raise Unsafe(f"init={init}: {error}") from None
        return cls(program, source, asked, fresh, order)

    def load(self, params, say: Callable):
        """Return `params` with what `init` has; print loaded, merged, fresh and ignored."""
        loaded, record = self.source.read(self.asked, self.program)
        loaded = in_order(loaded, self.order)
        rest = [path for path in reading.param_leaves(record) if path not in self.asked]
        merged = {lora.kernel_of(p) for p in rest if lora.is_adapter(p)} & self.asked.keys()
        ignored = [p for p in rest if not (lora.is_adapter(p) and lora.kernel_of(p) in merged)]
        lines = {"merged": sorted(merged), "fresh": self.fresh, "ignored": ignored}
        init, text = self.program.config.init, f"{len(self.asked)} parameters loaded"
        for what, paths in lines.items():
            if paths or what != "merged":
                text += f"; {what}: {', '.join(paths) or 'none'}"
        say(f"init from {init} step {record.step} ({self.source.why}): {text}")
        return tree.unflatten(tree.flatten(params) | loaded)
