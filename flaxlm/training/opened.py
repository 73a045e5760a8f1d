"""A run directory or a Hugging Face model, opened to be read."""

import dataclasses
import pathlib
from collections.abc import Callable

import jax

from flaxlm import sharding, tree
from flaxlm.errors import ConfigError
from flaxlm.interop.pretrained import SCHEME, Directory, Plan
from flaxlm.training import config as run_config
from flaxlm.training import reading
from flaxlm.training.head_labels import in_order, labels_of_run, order_of_head
from flaxlm.training.inputs import Inputs
from flaxlm.training.lora import LoraConfig
from flaxlm.training.step import Program, make_train_step

INIT = "init"  # the checkpoint that stands for the Hugging Face model of a run's `init`


def reader(config, devices=None) -> Program:
    """Return the Program of a config for evaluation and generation, on the devices at hand.

    It has no low-rank factors: those of the run are merged into their kernels when it is read.
    """
    optimizer = dataclasses.replace(config.optimizer, freeze=())  # may name factors
    config = dataclasses.replace(config, lora=LoraConfig(), optimizer=optimizer)
    mesh = sharding.make_mesh(config.sharding, devices)
    return make_train_step(config, mesh, max(1, config.train.steps))


def load_model(source: str, checkpoint: str, mesh: dict):
    """Return (Program, parameters, tokenizer) of a run directory or hf:NAME_OR_DIR, to be asked.

    Args:
      source: where the model lies; nothing is written there.
      checkpoint: of a run: latest, best, a step, or empty, see `reading.find`.
      mesh: the `sharding` section of the config, in place of the run's own.
    """
    recipe = run_config.read_run(source) | {"sharding": mesh}
    # Nothing is trained, so no batch has to divide over these devices.
    train = {"batch_size": jax.device_count(), "microbatches": 1}
    recipe["train"] = recipe.get("train", {}) | train
    if source.startswith(SCHEME):
        program = reader(run_config.from_dict(recipe | {"init": source}))
        with program.mesh():
            params, _ = load_for_reading(program, pathlib.Path(), INIT)
        return program, params, Directory(source).tokenizer()
    program, workdir = reader(run_config.build(run_config.expand(recipe))), pathlib.Path(source)
    require_step(program.config, workdir, checkpoint)
    with Inputs.open(program.config, workdir, write=False) as inputs, program.mesh():
        params, _ = load_for_reading(program, workdir, checkpoint)
    return program, params, inputs.tokenizer


def is_head(path: str) -> bool:
    """Return whether a parameter belongs to a head, which `init` may not have been trained with."""
    return path.startswith("heads/")


@dataclasses.dataclass(frozen=True)
class HubPlan:
    """What is loaded of a run's Hugging Face `init`: a plan, and the order of a head's outputs."""

    plan: Plan
    order: list[int]

    def load(self, asked: dict, quiet: bool = False) -> dict:
        """Return {path: array} of what is there, laid out as `asked`."""
        return in_order(self.plan.load(asked, quiet), self.order)


def hub_plan(
    program: Program, allow_missing: str | None = None, fresh: Callable = lambda path: False
) -> HubPlan:
    """Return the plan of loading a run's Hugging Face `init`; see `Directory.plan`."""
    config = program.config
    heads = config.objective.heads(config.model_name)
    directory = Directory(config.init)
    both = heads.keys() & directory.heads().keys()
    paths = [f"heads/{name}/{leaf}" for name in both for leaf in ("kernel", "bias")]
    labels = directory.description.labels
    order, other = order_of_head(config, labels, paths, config.init, allow_missing)
    plan = directory.plan(config.model, heads, allow_missing, fresh)
    if other:
        there = [path for path in plan.there if path not in other]
        missing = [path for path in plan.shapes if path not in there]
        plan = dataclasses.replace(plan, there=there, missing=missing)
    return HubPlan(plan, order)


def load_for_reading(
    program: Program, workdir: pathlib.Path, checkpoint: str, say: Callable = lambda line: None
):
    """Return (averaged parameters, step) of a run, laid out on the program's mesh.

    Args:
      program: of the run's config, on any mesh.
      workdir: the run directory.
      checkpoint: `latest`, `best`, a step, INIT, or nothing, see `reading.find`.
      say: prints one line, which step it is.
    """
    asked = tree.flatten(program.abstract_state.params)
    if checkpoint == INIT:
        return tree.unflatten(hub_plan(program).load(asked)), 0
    source = reading.find(workdir, checkpoint, program.config.eval)
    labels = labels_of_run(workdir)
    order, _ = order_of_head(program.config, labels, asked, str(workdir))
    params, found = source.read(asked, program)
    params = in_order(params, order)
    say(f"checkpoint: {workdir} step {found.step} ({source.why})")
    return tree.unflatten(params), found.step


def load_backbone(
    program: Program, workdir: pathlib.Path, checkpoint: str, say: Callable = lambda line: None
):
    """Return the parameters of a run without those of its heads; see `load_for_reading`."""
    if checkpoint == INIT:
        asked = tree.flatten(program.abstract_state.params)
        loaded = hub_plan(program, fresh=is_head).load(asked)
    else:
        loaded = tree.flatten(load_for_reading(program, workdir, checkpoint, say)[0])
    return tree.unflatten({path: leaf for path, leaf in loaded.items() if not is_head(path)})


def require_step(config, workdir: pathlib.Path, checkpoint: str) -> None:
    """Raise unless `checkpoint` can be read, before anything else is."""
    if checkpoint != INIT:
        reading.find(workdir, checkpoint, config.eval)
    elif not config.init.startswith(SCHEME):
        raise ConfigError(f"--checkpoint={INIT} reads a Hugging Face model; init={config.init!r}")
