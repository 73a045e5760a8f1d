"""Where a run starts: this workdir → `init` (another run, or a Hugging Face model) → scratch."""

import re
from collections.abc import Callable

import jax

from flaxlm import sharding, tree
from flaxlm.errors import ConfigError, Unsafe
from flaxlm.interop.pretrained import SCHEME
from flaxlm.models import MODELS
from flaxlm.progress import say
from flaxlm.training import history, lora, reading
from flaxlm.training.checkpoint import Checkpointer
from flaxlm.training.head_labels import in_order, labels_of_run, order_of_head
from flaxlm.training.opened import hub_plan
from flaxlm.training.program import Program
from flaxlm.training.step import TrainProgram


def restore_or_init(
    program: TrainProgram, saved: Checkpointer, allow_missing: str, total: int = 1, rows: int = 1
):
    """Return (TrainState, step) to go on from; what was loaded, and what it promises, is said.

    Args:
      program: its abstract state says what to load, and where each part lies.
      saved: the workdir's checkpoints.
      allow_missing: regex of parameters that may start fresh under `init`.
      total, rows: the run's last step, and the rows of an epoch.

    Raises:
      StorageError: there are checkpoints and none can be read, or no room for one.
      ConfigError: `init` lacks parameters, or `allow_missing` is no regex.
      Unsafe: a checkpoint, here or of `init`, has parameters of other shapes.
    """
    tree.check_patterns("--allow_missing", (allow_missing,))
    saved.probe(program.abstract_state)
    axes, config = MODELS[program.config.model_name].axes, program.config.sharding
    for line in sharding.unsplit(axes, program.abstract_params, program.device_mesh, config):
        say(f"not split evenly: {line}")
    now = history.facts(program.config, program.device_mesh, total)
    saved.extra["history"] = [[0, now]]
    # 1. This workdir: a run that was stopped goes on.
    if saved.latest() is not None:
        state, record = saved.restore(program.abstract_state)
        step, then = record.step, history.of(record, saved.path(record.step), now, rows)
        promise = history.promise(then, step, now, program.config)
        saved.extra["history"] = history.extended(then, step, now)
        say(f"resuming from step {step}: {promise}")
        return state, step
    # 2. `init`: the parameters of another run. What it cannot give is said before anything is made.
    seed = program.config.seed
    if program.config.init and program.config.init_weights:
        load = init_source(program, allow_missing)
        # Optimizer and averages start anew, from these parameters.
        return program.begin(load(program.init(seed).params, say)), 0
    # 3. Scratch.
    say(f"starting from scratch with seed {seed}")
    return program.init(seed), 0


def init_source(program: Program, allow_missing: str) -> Callable:
    """Return load(params, say) -> `params` with what the run's `init` has, which is said.

    A parameter may start fresh only if it belongs to a head of this objective, which `init` was
    not trained with, if it is a low-rank factor, or if `allow_missing` matches its path. What
    cannot be loaded is refused at once, see `restore_or_init`.
    """
    hub = program.config.init.startswith(SCHEME)
    return (_init_from_hub if hub else _init_from_run)(program, allow_missing)


def _is_head(path: str) -> bool:
    return path.startswith("heads/")


def _init_from_hub(program: Program, allow_missing: str) -> Callable:
    plan, order = hub_plan(program, allow_missing, _is_head)

    def load(params, say: Callable):
        asked, fresh = map(tree.flatten, (program.abstract_params, params))
        loaded = plan.load(asked, fresh, quiet=jax.process_index() != 0)
        say(f"init from {plan}")
        return tree.unflatten(fresh | in_order(loaded, order))

    return load


def _init_from_run(program: Program, allow_missing: str) -> Callable:
    """Return `load` of a run, whose own low-rank factors are merged into their kernels."""
    init = program.config.init
    source = reading.find(init, "")
    there = reading.param_leaves(source.saved.manifest(source.step))
    wanted = tree.flatten(program.abstract_params)
    asked = {p: x for p, x in wanted.items() if p in there and not lora.is_adapter(p)}
    order, other = order_of_head(program.config, labels_of_run(init), asked, init, allow_missing)
    asked = {path: leaf for path, leaf in asked.items() if path not in other}
    fresh = [path for path in wanted if path not in asked]
    refused = [
        path
        for path in fresh
        if not (_is_head(path) or lora.is_adapter(path))
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

    def load(params, say: Callable):
        loaded, record = source.read(asked, program)
        unasked = [path for path in reading.param_leaves(record) if path not in asked]
        merged = {lora.kernel_of(p) for p in unasked if lora.is_adapter(p)} & asked.keys()
        ignored = [p for p in unasked if not (lora.is_adapter(p) and lora.kernel_of(p) in merged)]
        text = f"{len(asked)} parameters loaded"
        for what, paths in {"merged": sorted(merged), "fresh": fresh, "ignored": ignored}.items():
            if paths or what != "merged":
                text += f"; {what}: {', '.join(paths) or 'none'}"
        say(f"init from {init} step {record.step} ({source.why}): {text}")
        return tree.unflatten(tree.flatten(params) | in_order(loaded, order))

    return load
