"""What each verb of the command line does, on plain arguments."""

import hashlib
import pathlib

import jax
import numpy as np

from flaxlm import sharding, tree
from flaxlm.errors import ConfigError
from flaxlm.training.checkpoint import Checkpointer
from flaxlm.training.inputs import Inputs
from flaxlm.training.metrics import table, write_result
from flaxlm.training.start import find_step, load_for_reading
from flaxlm.training.step import Program, make_train_step, parameter_count


def reader(config, devices=None) -> Program:
    """Return the Program of a config for evaluation and generation, on the devices at hand."""
    mesh = sharding.make_mesh(config.sharding, devices)
    return make_train_step(config, mesh, max(1, config.train.steps))


def tokenize(config, workdir: pathlib.Path) -> dict:
    """Train the tokenizer if there is none, write the token caches; return their counts."""
    if config.task.objective:
        raise ConfigError(
            f"task {config.task_name} reads its examples when it trains; tokenize takes a recipe "
            "with task text"
        )
    with Inputs.open(config, workdir) as inputs:
        result = {"tokenizer/hash": inputs.tokenizer.hash[:16]}
        result["tokenizer/vocab_size"] = inputs.tokenizer.vocab_size
        for split in config.data.split_names():
            sources = inputs.sources(split)
            for name in ("documents", "tokens", "bytes", "words"):
                total = sum(source.counts[name] for source in sources)
                result[f"{split}/{name}"] = total
    return result


def evaluate(config, workdir: pathlib.Path, split: str, checkpoint: str) -> dict:
    """Return `{split/metric: value}` of a run's checkpoint over a whole split."""
    from flaxlm.evaluate import evaluate_split

    find_step(Checkpointer(workdir, read_only=True), workdir, checkpoint)
    with Inputs.open(config, workdir, write=False) as inputs:
        program = reader(config)
        with program.mesh():
            params, step = load_for_reading(program, workdir, checkpoint)
            scores = evaluate_split(program, params, inputs, split, label="evaluate", full=True)
    return {f"{split}/{name}": value for name, value in scores.items()} | {"step": step}


def generate(config, workdir: pathlib.Path, prompts: list[str], options, checkpoint: str) -> list:
    """Return a Generation for each prompt and sample."""
    from flaxlm import generate as generation

    find_step(Checkpointer(workdir, read_only=True), workdir, checkpoint)
    with Inputs.open(config, workdir, write=False) as inputs:
        program = reader(config, jax.local_devices()[:1])
        with program.mesh():
            params, _ = load_for_reading(program, workdir, checkpoint)
            return generation.generate(
                program.model, params, inputs.tokenizer, prompts, options, config.model_name
            )


def inspect(config, workdir: pathlib.Path, checkpoint: str) -> dict:
    """Return step, parameter count, hashes and digests, computed on one CPU device."""
    device = jax.devices("cpu")[:1]
    saved = Checkpointer(workdir, read_only=True)
    step = find_step(saved, workdir, checkpoint)
    with Inputs.open(config, workdir, write=False) as inputs:
        mesh = sharding.make_mesh(type(config.sharding)(), device)
        program = make_train_step(config, mesh, max(1, config.train.steps))
        with program.mesh():
            state, found = saved.restore(program.abstract_state, step=step)
            result = {
                "step": found.step,
                "model": config.model_name,
                "objective": config.objective_name,
                "parameters": parameter_count(config),
                "tokenizer/hash": inputs.tokenizer.hash[:16],
                "digest/params": tree.digest_of(state.params),
                "digest/opt_state": tree.digest_of(state.opt_state),
                "digest/next_batch": batch_digest(inputs, found.step),
            }
    return result


def batch_digest(inputs: Inputs, step: int) -> str:
    """Return 16 hexadecimal digits of the global batch that step `step` reads."""
    batches = inputs.train(inputs.config.train.batch_size)
    batch = batches.rows(step, 0, batches.batch_size)
    total = hashlib.sha256()
    for name in sorted(batch):
        total.update(name.encode() + np.ascontiguousarray(batch[name]).tobytes())
    return total.hexdigest()[:16]


def report(workdir: pathlib.Path, result: dict, title: str) -> None:
    """Write `result.json` and print the table."""
    write_result(workdir, result)
    table(result, title)
