"""`convert`: turn a Hugging Face directory into a run directory, or the other way."""

import dataclasses
import pathlib
from typing import ClassVar

import jax

from flaxlm import sharding
from flaxlm.commands.options import CheckpointOptions, FreshOptions, VerbOptions
from flaxlm.data.sentence_modules import modules_for, read_modules
from flaxlm.errors import ConfigError, Unsafe, choose
from flaxlm.interop.pretrained import SCHEME, Directory, from_pretrained, save_pretrained
from flaxlm.models import parameter_count
from flaxlm.models.config import DTYPES
from flaxlm.progress import say
from flaxlm.training import config as run_config
from flaxlm.training.checkpoint import Checkpointer
from flaxlm.training.inputs import Inputs
from flaxlm.training.metrics import table
from flaxlm.training.opened import open_run
from flaxlm.training.start import restore_or_init
from flaxlm.training.step import make_train_step
from flaxlm.training.workdir import probe


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(VerbOptions, CheckpointOptions, FreshOptions):
    """What is turned into what."""

    takes_config: ClassVar[bool] = False
    platform: ClassVar[str] = "cpu"
    from_: str  # run directory, hf:DIR or hf:NAME
    to: str  # run directory or hf:DIR, made
    architecture: str = ""  # class to write; empty: the one that fits
    dtype: str = ""  # of the parameters; empty: as they are stored


def run(options: Options, config: None) -> None:
    """Convert and print what was done."""
    names = ("from_", "to", "architecture", "dtype", "checkpoint", "allow_missing")
    result = convert(*(getattr(options, name) for name in names))
    table(result, f"convert: {options.to}")


def convert(
    source: str,
    target: str,
    architecture: str = "",
    dtype: str = "",
    checkpoint: str = "",
    allow_missing: str = "",
) -> dict:
    """Write a run as a Hugging Face directory or the other way round; return what was done.

    `source` and `target` are the `from_` and `to` of `Options`, which describes the rest too.
    """
    choose("--dtype", dtype, ("", *DTYPES))
    given = {"architecture": architecture, "checkpoint": checkpoint, "allow_missing": allow_missing}
    unused = {"checkpoint"} if source.startswith(SCHEME) else {"allow_missing"}
    unused |= set() if target.startswith(SCHEME) else {"architecture"}
    for name in sorted(unused):
        if given[name]:
            raise ConfigError(
                f"--{name}={given[name]} has no meaning from {source} to {target}; leave it out"
            )
    directory = pathlib.Path(target.removeprefix(SCHEME)).absolute()
    probe(next(place for place in (directory, *directory.parents) if place.exists()))
    if source.startswith(SCHEME):
        stored = Directory(source).weights.dtype.name
        if not target.startswith(SCHEME):
            return import_run(source, directory, dtype or stored, allow_missing)
        name = source.removeprefix(SCHEME)
        model = from_pretrained(name, allow_missing=allow_missing, param_dtype=stored)
    elif target.startswith(SCHEME):
        model = export_run(pathlib.Path(source).absolute(), checkpoint)
    else:
        raise ConfigError(
            f"--from={source} and --to={target}: one of them has to be a Hugging Face directory, "
            "hf:DIR"
        )
    files = save_pretrained(directory, model, architecture=architecture, dtype=dtype)
    written = Directory(directory)
    return {
        "architecture": written.description.architecture,
        "dtype": written.weights.dtype.name,
        "files": len(files),
        "bytes": sum(file.stat().st_size for file in files),
    }


def import_run(source: str, workdir: pathlib.Path, dtype: str, allow_missing: str) -> dict:
    """Make a run directory of a Hugging Face model, its parameters as step 0."""
    recipe = run_config.hub_recipe(source)
    recipe["model"] |= {"param_dtype": dtype, "vocab_size": Directory(source).rows()}
    config = run_config.from_dict(recipe | {"init": source})
    with Inputs.open(config, workdir) as inputs:
        mesh = sharding.make_mesh(config.sharding, jax.local_devices()[:1])
        program = make_train_step(config, mesh, 1)
        saved = Checkpointer(workdir, extra=inputs.identity(splits=()), files=inputs.files())
        with program.mesh(), saved:
            if saved.latest() is not None:
                raise Unsafe(f"{workdir} holds a run already; take another --to")
            state, step = restore_or_init(program, saved, allow_missing)
            saved.save(step, state, wait=True)
    count = parameter_count(config.model_name, config.model, program.abstract_params)
    return {"model": config.model_name, "parameters": count, "dtype": dtype}


def export_run(workdir: pathlib.Path, checkpoint: str):
    """Return a run's TrainedModel."""
    config = run_config.build(run_config.expand(run_config.read_run(str(workdir))))
    devices = jax.local_devices()[:1]
    with open_run(config, workdir, checkpoint, devices=devices, say=say) as run:
        pooling, tokenizer = getattr(config.objective, "pooling", ""), run.model.tokenizer
        if pooling not in ("", read_modules(tokenizer.beside).pooling):
            modules = modules_for(pooling, run.model.config.width, config.train.length)
            tokenizer.beside = {**tokenizer.beside, **modules}
        return run.model
