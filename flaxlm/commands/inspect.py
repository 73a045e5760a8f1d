"""`inspect`: print step, parameter count and digests of a checkpoint."""

import dataclasses
import hashlib
import pathlib
from typing import ClassVar

import jax
import numpy as np

from flaxlm import tree
from flaxlm.commands.options import DATA, HEADS, MODEL, SCORED, ReadOptions
from flaxlm.interop.pretrained import from_pretrained
from flaxlm.models import parameter_count
from flaxlm.training.inputs import Inputs
from flaxlm.training.metrics import report, table
from flaxlm.training.program import abstract_params
from flaxlm.training.reading import find, read_chosen


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(ReadOptions):
    """What is looked at."""

    platform: ClassVar[str] = "cpu"
    reads: ClassVar[str] = rf"(?!{SCORED})({MODEL}|{HEADS}|{DATA}|lora\.(rank|alpha|targets))"
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
        result = inspect(config, options.place, options.checkpoint)
        report(options.place, result, "inspect", "digest")


def inspect(config, workdir: pathlib.Path, checkpoint: str) -> dict:
    """Return step, parameter count, hashes and digests, computed on one CPU device."""
    find(workdir, checkpoint, config.eval)  # refused before anything is read
    params = abstract_params(config, config.objective.heads(config.model_name), adapters=True)
    with (
        Inputs.open(config, workdir, write=False) as inputs,
        jax.default_device(jax.devices("cpu")[0]),
    ):
        record = read_chosen(
            workdir, checkpoint, config.eval, lambda source: source.verified(params)
        )
        return {
            "step": record.step,
            "model": config.model_name,
            "objective": config.objective_name,
            "parameters": parameter_count(config.model_name, config.model, params),
            "tokenizer/hash": inputs.tokenizer.hash[:16],
            "digest/params": tree.combined(record.digests("params/")),
            "digest/opt_state": tree.combined(record.digests("opt_state/")),
            "digest/next_batch": batch_digest(inputs, record.step),
        }


def inspect_pretrained(source: str) -> dict:
    """Return what a Hugging Face directory holds, with the digest of its parameters."""
    model = from_pretrained(source, allow_missing=None)
    return {
        "architecture": model.architecture or "backbone",
        "model": model.family,
        "heads": ", ".join(model.heads) or "none",
        "parameters": parameter_count(model.family, model.config, model.params),
        "tokenizer/hash": model.tokenizer.hash[:16] if model.tokenizer else "none",
        "digest/params": tree.digest_of(model.params),
    }


def batch_digest(inputs: Inputs, step: int) -> str:
    """Return 16 hexadecimal digits of the global batch that step `step` reads."""
    batches = inputs.train(inputs.config.train.batch_size)
    batch = batches.rows(step, 0, batches.batch_size)
    total = hashlib.sha256()
    for name in sorted(batch):
        total.update(name.encode() + np.ascontiguousarray(batch[name]).tobytes())
    return total.hexdigest()[:16]
