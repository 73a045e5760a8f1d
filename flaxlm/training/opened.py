"""A run directory or a Hugging Face model, opened to be read."""

import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Callable

import jax

from flaxlm import sharding, tree
from flaxlm.errors import ConfigError
from flaxlm.interop.pretrained import SCHEME, Directory, Plan, from_pretrained
from flaxlm.sharding import ShardingConfig
from flaxlm.trained import TrainedModel
from flaxlm.training import config as run_config
from flaxlm.training import reading
from flaxlm.training.head_labels import in_order, labels_of_run, order_of_head
from flaxlm.training.inputs import Inputs
from flaxlm.training.newest import CONFIG, newest
from flaxlm.training.program import Program, make_program
from flaxlm.untrusted import file_bytes, parse_json

INIT = "init"  # the checkpoint that stands for the Hugging Face model of a run's `init`


@dataclasses.dataclass(frozen=True)
class Opened:
    """A run that is read, with the parameters of a step."""

    model: TrainedModel
    program: Program
    inputs: Inputs
    step: int


@contextlib.contextmanager
def open_run(
    config: run_config.RunConfig,
    workdir: pathlib.Path,
    checkpoint: str = "",
    *,
    devices=None,
    heads: dict[str, int] | None = None,
    say: Callable = lambda line: None,
):
    """Yield the Opened run of a config and its directory, its mesh entered.

    Args:
      checkpoint: `latest`, `best`, a step, INIT, or nothing, see `reading.find`.
      devices: of the mesh, along the batch; None: all, as the config says.
      heads: {head: output size} to read; {} for the backbone, None for those of the objective.
      say: prints one line, which step it is.

    Raises:
      ConfigError, MissingInput, Unsafe: there is nothing to read, before anything else is.
    """
    if checkpoint != INIT:
        reading.find(workdir, checkpoint, config.eval)
    elif not config.init.startswith(SCHEME):
        raise ConfigError(f"--checkpoint={INIT} reads a Hugging Face model; init={config.init!r}")
    with Inputs.open(config, workdir, write=checkpoint == INIT) as inputs:
        config = inputs.config
        if devices:
            config = dataclasses.replace(config, sharding=ShardingConfig())
        mesh = sharding.make_mesh(config.sharding, devices)
        program = make_program(config, mesh, heads)
        with program.mesh():
            params, step = load_params(program, workdir, checkpoint, say)
            foreign = checkpoint == INIT
            facts = {
                "problem": config.objective.problem,
                "generation": Directory(config.init).generation() if foreign else inputs.generation,
                "trained_here": step > 0 or not config.init.startswith(SCHEME),
            }
            if set(program.heads) & {"classification", "token_classification"}:
                facts["labels"] = getattr(config.objective, "labels", ())
            program = dataclasses.replace(program, facts=facts)
            yield Opened(program.trained(params, inputs.tokenizer), program, inputs, step)


def load(
    source: str | os.PathLike,
    *,
    checkpoint: str = "",
    heads: dict[str, int] | None = None,
    sharding: ShardingConfig | None = None,
    **options,
) -> TrainedModel:
    """Return the trained model of a run directory, of a Hugging Face directory or of a hub name.

    Args:
      source: where it lies, `hf:` before it or not; nothing is written there.
      checkpoint: of a run: latest, best, a step, or empty, see `reading.find`.
      heads: {head: output size} to read in place of the model's own; {} for the backbone.
      sharding: how the parameters are split over all devices; None: all on the first one.
      options: of a Hugging Face model: `revision`, `allow_missing`, and fields of its config, see
        `interop.pretrained.from_pretrained`.

    Raises:
      MissingInput, DataError, ConfigError, Unsafe: what is wrong with it, in one line.
    """
    source = os.fspath(source)
    if not _is_run(source):
        if checkpoint:
            raise ConfigError(f"checkpoint={checkpoint!r}: {source} is not a run directory")
        return from_pretrained(source, heads=heads, sharding=sharding, **options)
    if options:
        raise ConfigError(
            f"{', '.join(options)}: {source} is a run directory, of which checkpoint, heads and "
            "sharding can be chosen"
        )
    config = run_config.build(run_config.expand(run_config.read_run(source)))
    config = dataclasses.replace(config, sharding=sharding or config.sharding)
    devices = None if sharding else jax.local_devices()[:1]
    with open_run(config, pathlib.Path(source), checkpoint, devices=devices, heads=heads) as opened:
        return opened.model


def _is_run(source: str) -> bool:
    if source.startswith(SCHEME):
        return False
    with contextlib.suppress(OSError, ValueError, AttributeError, RecursionError):
        contents = file_bytes(pathlib.Path(source) / CONFIG)
        return isinstance(parse_json(contents).get("objective"), dict)
    return newest(source) is not None


def hub_plan(
    program: Program, allow_missing: str | None = None, fresh: Callable = lambda path: False
) -> tuple[Plan, list[int]]:
    """Return the plan of loading a run's Hugging Face `init`, and the order of a head's outputs.

    See `Directory.plan` and `order_of_head`.
    """
    config, heads = program.config, program.heads
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
    return plan, order


def load_params(
    program: Program, workdir: pathlib.Path, checkpoint: str, say: Callable = lambda line: None
):
    """Return (averaged parameters, step) of a run, laid out on the program's mesh.

    `checkpoint` and `say` are as for `open_run`.
    """
    asked = tree.flatten(program.abstract_params)
    if checkpoint == INIT:
        plan, order = hub_plan(program)
        return tree.unflatten(in_order(plan.load(asked), order)), 0
    order, _ = order_of_head(program.config, labels_of_run(workdir), asked, str(workdir))

    def read(source: reading.Source):
        return source, *source.read(asked, program)

    source, params, record = reading.read_chosen(workdir, checkpoint, program.config.eval, read)
    say(f"checkpoint: {workdir} step {record.step} ({source.why})")
    return tree.unflatten(in_order(params, order)), record.step
