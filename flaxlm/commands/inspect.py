"""`inspect`: print step, config, parameter count and digests of a checkpoint."""

import dataclasses
import hashlib
import pathlib
from typing import ClassVar

import jax
import numpy as np

from flaxlm import sharding, tree
from flaxlm.commands.options import ReadOptions
from flaxlm.interop.pretrained import from_pretrained
from flaxlm.models import parameter_count as count
from flaxlm.training.inputs import Inputs
from flaxlm.training.metrics import report, table
from flaxlm.training.opened import require_step
from flaxlm.training.reading import find
from flaxlm.training.step import make_train_step, parameter_count


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(ReadOptions):
    """What is looked at."""

    platform: ClassVar[str] = "cpu"
    checkpoint: str = "latest"

    @property
    def takes_config(self) -> bool:
        """Whether the config can be changed: not that of a Hugging Face model."""
        return not self.foreign


def run(options: Options, config) -> None:
    """Print what there is."""
    if config is None:
        table(inspect_pretrained(options.workdir), f"inspect: {options.workdir}")
    else:
        report(options.place, inspect(config, options.place, options.checkpoint), "inspect")


def inspect(config, workdir: pathlib.Path, checkpoint: str) -> dict:
    """Return step, parameter count, hashes and digests, computed on one CPU device."""
    device = jax.devices("cpu")[:1]
    require_step(config, workdir, checkpoint)
    with Inputs.open(config, workdir, write=False) as inputs:
        mesh = sharding.make_mesh(type(config.sharding)(), device)
        program = make_train_step(config, mesh, max(1, config.train.steps))
        with program.mesh():
            source = find(workdir, checkpoint, config.eval)
            state, found = source.saved.restore(program.abstract_state, step=source.step)
            return {
                "step": found.step,
                "model": config.model_name,
                "objective": config.objective_name,
                "parameters": parameter_count(config),
                "tokenizer/hash": inputs.tokenizer.hash[:16],
                "digest/params": tree.digest_of(state.params),
                "digest/opt_state": tree.digest_of(state.opt_state),
                "digest/next_batch": batch_digest(inputs, found.step),
            }


def inspect_pretrained(source: str) -> dict:
    """Return what a Hugging Face directory holds, with the digest of its parameters."""
    found = from_pretrained(source)
    return {
        "architecture": found.architecture or "backbone",
        "model": found.model,
        "heads": ", ".join(found.heads) or "none",
        "parameters": count(found.model, found.config, found.heads),
        "tokenizer/hash": found.tokenizer.hash[:16] if found.tokenizer else "none",
        "digest/params": tree.digest_of(found.params),
    }


def batch_digest(inputs: Inputs, step: int) -> str:
    """Return 16 hexadecimal digits of the global batch that step `step` reads."""
    batches = inputs.train(inputs.config.train.batch_size)
    batch = batches.rows(step, 0, batches.batch_size)
    total = hashlib.sha256()
    for name in sorted(batch):
        total.update(name.encode() + np.ascontiguousarray(batch[name]).tobytes())
    return total.hexdigest()[:16]
