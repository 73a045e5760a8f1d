"""Where a run starts: this workdir → `init` (another run, or a Hugging Face model) → scratch."""

import dataclasses
import pathlib
import re
from collections.abc import Callable

import jax

from flaxlm import sharding, tree
from flaxlm.errors import ConfigError, MissingInput, Unsafe
from flaxlm.interop.pretrained import SCHEME, Directory, Plan
from flaxlm.training import arrays, manifest
from flaxlm.training.checkpoint import Checkpointer
from flaxlm.training.inputs import Inputs
from flaxlm.training.step import Program

INIT = "init"  # the checkpoint that stands for the Hugging Face model of a run's `init`


def start(program: Program, saved: Checkpointer, inputs: Inputs, allow_missing: str, say: Callable):
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
    for line in sharding.unsplit(*_axes(program)):
        say(f"not split evenly: {line}")
    # 1. This workdir: a run that was stopped goes on.
    if saved.latest() is not None:
        state, found = saved.restore(program.abstract_state)
        say(
            f"resuming from step {found.step}: "
            + manifest.promise(found.fingerprint, manifest.fingerprint())
        )
        return state, found.step
    # 2. `init`: the parameters of another run. What it cannot give is said before anything is made.
    if program.config.init and program.config.init_weights:
        wanted = wanted_of(program, allow_missing)
        state = program.init(program.config.seed)
        params = wanted.load(state.params, say)
        state = state.replace(params=params)
        if state.ema:
            state = state.replace(ema=jax.tree.map(lambda p: p.copy(), params))
        # The optimizer starts anew, from these parameters.
        opt = jax.tree.map(lambda a: a.sharding, program.abstract_state.opt_state)
        state = state.replace(opt_state=jax.jit(program.optimizer.init, out_shardings=opt)(params))
    # 3. Scratch.
    else:
        say(f"starting from scratch with seed {program.config.seed}")
        state = program.init(program.config.seed)
    return state, 0


def _axes(program: Program):
    from flaxlm.models import MODELS

    axes = MODELS[program.config.model_name].axes
    return axes, program.abstract_state.params, program.device_mesh, program.config.sharding


def is_head(path: str) -> bool:
    """Return whether a parameter belongs to a head, which `init` may not have been trained with."""
    return path.startswith("heads/")


def wanted_of(program: Program, allow_missing: str):
    """Return what a run takes from its `init`, checked; see `Wanted` for what is raised."""
    if not program.config.init.startswith(SCHEME):
        return Wanted.of(program, allow_missing)
    return Hub(program, hub_plan(program, allow_missing, is_head))


def hub_plan(
    program: Program, allow_missing: str = "", fresh: Callable = lambda path: False
) -> Plan:
    """Return the plan of loading a run's Hugging Face `init`."""
    config = program.config
    heads = config.objective.heads(config.model_name)
    return Directory(config.init).plan(config.model, heads, allow_missing, fresh)


@dataclasses.dataclass(frozen=True)
class Hub:
    """What a run takes from a Hugging Face directory."""

    program: Program
    plan: Plan

    def load(self, params, say: Callable):
        """Return `params` with what the directory has; print loaded, fresh and ignored."""
        asked = tree.flatten(self.program.abstract_state.params)
        loaded = self.plan.load(asked, quiet=jax.process_index() != 0)
        say(f"init from {self.plan}")
        return tree.unflatten(tree.flatten(params) | loaded)


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What a run takes from its `init`.

    A parameter may start fresh only if it belongs to a head of this objective, which `init` was
    not trained with, or if `allow_missing` matches its path.

    Attributes:
      init: the run directory that it comes from.
      branch: the branch of its checkpoints: `params` or `ema`.
      asked: `{path: ShapeDtypeStruct}` of the parameters that it has.
      fresh: paths of those that it lacks.
    """

    init: str
    branch: str
    asked: dict
    fresh: list[str]

    @classmethod
    def of(cls, program: Program, allow_missing: str) -> "Wanted":
        """Return what `program` takes; see the class, and `start` for what is raised."""
        init = program.config.init
        source = Checkpointer(init, read_only=True)
        step = source.latest()
        if step is None:
            raise MissingInput(f"init={init} holds no checkpoint")
        record = source.manifest(step)
        branch = branch_of(record)
        wanted = tree.flatten(program.abstract_state.params)
        asked = {p: leaf for p, leaf in wanted.items() if f"{branch}/{p}" in record.leaves}
        fresh = [path for path in wanted if path not in asked]
        refused = [
            path
            for path in fresh
            if not is_head(path) and not (allow_missing and re.search(allow_missing, path))
        ]
        if refused:
            raise ConfigError(
                f"init={init} has no {', '.join(refused)}; name what may start fresh "
                "with --allow_missing='regex'"
            )
        try:
            arrays.check(record, {f"{branch}/{p}": leaf for p, leaf in asked.items()}, whole=False)
        except Unsafe as error:
            raise Unsafe(f"init={init}: {error}") from None
        return cls(init, branch, asked, fresh)

    def load(self, params, say: Callable):
        """Return `params` with what `init` has; print loaded, fresh and ignored."""
        source = Checkpointer(self.init, read_only=True)
        # No step is named, so that a damaged newest one is passed over.
        loaded, found = source.restore_params(None, self.branch, tree.unflatten(self.asked))
        start = f"{self.branch}/"
        held = [path.removeprefix(start) for path in found.leaves if path.startswith(start)]
        ignored = [path for path in held if path not in self.asked]
        say(
            f"init from {self.init} step {found.step}: {len(self.asked)} parameters loaded; "
            f"fresh: {', '.join(self.fresh) or 'none'}; ignored: {', '.join(ignored) or 'none'}"
        )
        return tree.unflatten(tree.flatten(params) | tree.flatten(loaded))


def branch_of(record: manifest.Manifest) -> str:
    """Return the branch of a checkpoint that is evaluated: the average where there is one."""
    return "ema" if any(path.startswith("ema/") for path in record.leaves) else "params"


def load_for_reading(program: Program, workdir: pathlib.Path, checkpoint: str):
    """Return (averaged parameters, step) of a run, laid out on the program's mesh.

    Args:
      program: of the run's config, on any mesh.
      workdir: the run directory.
      checkpoint: `latest`, `best`, a step, or INIT.
    """
    if checkpoint == INIT:
        asked = tree.flatten(program.abstract_state.params)
        return tree.unflatten(hub_plan(program).load(asked)), 0
    saved = Checkpointer(workdir, read_only=True)
    step = find_step(saved, workdir, checkpoint)
    branch = branch_of(saved.manifest(step))
    # `latest` names no step, so that a damaged newest one is passed over.
    asked = None if checkpoint == "latest" else step
    params, found = saved.restore_params(asked, branch, program.abstract_state.params)
    return params, found.step


def load_backbone(program: Program, workdir: pathlib.Path, checkpoint: str):
    """Return the parameters of a run without those of its heads; see `load_for_reading`."""
    if checkpoint == INIT:
        asked = tree.flatten(program.abstract_state.params)
        loaded = hub_plan(program, fresh=is_head).load(asked)
    else:
        loaded = tree.flatten(load_for_reading(program, workdir, checkpoint)[0])
    return tree.unflatten({path: leaf for path, leaf in loaded.items() if not is_head(path)})


def require_step(config, workdir: pathlib.Path, checkpoint: str) -> None:
    """Raise unless `checkpoint` can be read, before anything else is."""
    if checkpoint != INIT:
        find_step(Checkpointer(workdir, read_only=True), workdir, checkpoint)
    elif not config.init.startswith(SCHEME):
        raise ConfigError(f"--checkpoint={INIT} reads a Hugging Face model; init={config.init!r}")


def find_step(saved: Checkpointer, workdir: pathlib.Path, checkpoint: str) -> int:
    """Return the step that `latest`, `best` or a number names."""
    if saved.latest() is None:
        raise MissingInput(f"{workdir} holds no checkpoint; train there first")
    if checkpoint == "latest":
        return saved.latest()
    if checkpoint == "best":
        best = saved.best()
        if best is None:
            raise MissingInput(f"{workdir}: no checkpoint was saved with an evaluation score")
        return best
    steps = [str(step) for step in saved.steps()]
    if checkpoint not in steps:
        raise ConfigError(
            f"--checkpoint={checkpoint} is not there; choose latest, best or {', '.join(steps)}"
        )
    return int(checkpoint)
