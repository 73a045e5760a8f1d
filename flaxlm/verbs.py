"""What each verb of the command line does, on plain arguments."""

import dataclasses
import hashlib
import pathlib

import jax
import numpy as np

from flaxlm import sharding, tree
from flaxlm.errors import ConfigError, Unsafe, choose
from flaxlm.models import parameter_count as count
from flaxlm.models.config import DTYPES
from flaxlm.progress import Progress
from flaxlm.training.checkpoint import Checkpointer
from flaxlm.training.inputs import Inputs
from flaxlm.training.lora import LoraConfig
from flaxlm.training.metrics import table, write_result
from flaxlm.training.reading import find
from flaxlm.training.start import INIT, load_backbone, load_for_reading, require_step, start
from flaxlm.training.step import Program, make_train_step, parameter_count


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
    from flaxlm.interop.pretrained import SCHEME, Directory
    from flaxlm.training import config as run_config

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
    from flaxlm.report import examine
    from flaxlm.train import say

    require_step(config, workdir, checkpoint)
    with Inputs.open(config, workdir, write=checkpoint == INIT) as inputs:
        program = reader(config)
        with program.mesh():
            params, step = load_for_reading(program, workdir, checkpoint, say)
            return examine(program, params, inputs, split, step) | {"step": step}


def generate(config, workdir: pathlib.Path, prompts: list[str], options, checkpoint: str) -> list:
    """Return a Generation for each prompt and sample."""
    from flaxlm import generate as generation
    from flaxlm.train import say

    require_step(config, workdir, checkpoint)
    with Inputs.open(config, workdir, write=checkpoint == INIT) as inputs:
        program = reader(config, jax.local_devices()[:1])
        with program.mesh():
            params, _ = load_for_reading(program, workdir, checkpoint, say)
            tokenizer, total = inputs.tokenizer, len(prompts) * options.num_samples
            asked = [config.objective.request(prompt, tokenizer) for prompt in prompts]
            with Progress("generate", total, unit="texts") as progress:
                made = generation.generate(
                    *(program.model, params, tokenizer, asked, options, config.model_name),
                    progress.update,
                )
    said = [prompt for prompt in prompts for _ in range(len(made) // len(prompts))]
    return [dataclasses.replace(g, prompt=prompt) for g, prompt in zip(made, said, strict=True)]


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
    from flaxlm.interop.pretrained import from_pretrained

    found = from_pretrained(source)
    return {
        "architecture": found.architecture or "backbone",
        "model": found.model,
        "heads": ", ".join(found.heads) or "none",
        "parameters": count(found.model, found.config, found.heads),
        "tokenizer/hash": found.tokenizer.hash[:16] if found.tokenizer else "none",
        "digest/params": tree.digest_of(found.params),
    }


def embed(
    config, workdir: pathlib.Path, source: str, target: str, options, checkpoint: str
) -> dict:
    """Write a vector for each text of a JSONL file as a NumPy array [N, D]; see `flaxlm.embed`."""
    from flaxlm import embed as embedding
    from flaxlm.train import say

    require_step(config, workdir, checkpoint)
    texts = embedding.read_texts(source)
    with Inputs.open(config, workdir, write=checkpoint == INIT) as inputs:
        # The backbone alone: heads are neither built nor, from a foreign model, looked for.
        program = reader(config, jax.local_devices()[:1])
        with embedding.writer(target) as write, program.mesh():
            params = load_backbone(program, workdir, checkpoint, say)
            vectors = embedding.embed(
                config.model_name, config.model, params, inputs.tokenizer, texts, options
            )
            write(vectors)
    return {"embed/texts": len(vectors), "embed/width": vectors.shape[1]}


def convert(
    source: str,
    target: str,
    architecture: str = "",
    dtype: str = "",
    checkpoint: str = "",
    allow_missing: str = "",
) -> dict:
    """Write a run as a Hugging Face directory or the other way round; return what was done.

    Args:
      source, target: a run directory, or `hf:DIR` (`hf:NAME` as the source).
      architecture: class to write; empty for the first that fits.
      dtype: of the tensors written; empty for that of the parameters.
      checkpoint: of a run: latest, best, a step, or empty, see `reading.find`.
      allow_missing: regex of parameters that may start fresh in a run.
    """
    from flaxlm.interop.pretrained import SCHEME, Directory, from_pretrained, save_pretrained

    if dtype:
        choose("--dtype", dtype, DTYPES)
    if source.startswith(SCHEME):
        stored = Directory(source).weights.dtype.name
        if not target.startswith(SCHEME):
            workdir = pathlib.Path(target).absolute()
            return import_run(source, workdir, dtype or stored, allow_missing)
        model = from_pretrained(source.removeprefix(SCHEME), param_dtype=stored)
    elif target.startswith(SCHEME):
        model = export_run(pathlib.Path(source).absolute(), checkpoint)
    else:
        raise ConfigError(
            f"--from={source} and --to={target}: one of them has to be a Hugging Face directory, "
            "hf:DIR"
        )
    directory = pathlib.Path(target.removeprefix(SCHEME)).absolute()
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
    from flaxlm.train import say
    from flaxlm.training import config as run_config

    recipe = run_config.hub_recipe(source)
    recipe["model"]["param_dtype"] = dtype
    config = run_config.from_dict(recipe | {"init": source})
    with Inputs.open(config, workdir) as inputs:
        program = reader(config, jax.local_devices()[:1])
        saved = Checkpointer(workdir, extra=inputs.identity(data=False), files=inputs.files())
        with program.mesh(), saved:
            if saved.latest() is not None:
                raise Unsafe(f"{workdir} holds a run already; take another --to")
            state, step = start(program, saved, inputs, allow_missing, say)
            saved.save(step, state, wait=True)
    return {"model": config.model_name, "parameters": parameter_count(config), "dtype": dtype}


def export_run(workdir: pathlib.Path, checkpoint: str):
    """Return a run's model as a `Pretrained`."""
    from flaxlm.interop.config import SIZED
    from flaxlm.interop.pretrained import Pretrained
    from flaxlm.train import say
    from flaxlm.training import config as run_config

    config = run_config.build(run_config.read_run(str(workdir)))
    require_step(config, workdir, checkpoint)
    with Inputs.open(config, workdir, write=False) as inputs:
        program = reader(config, jax.local_devices()[:1])
        with program.mesh():
            params, _ = load_for_reading(program, workdir, checkpoint, say)
        heads = config.objective.heads(config.model_name)
        labels = getattr(config.objective, "labels", ()) if any(map(heads.get, SIZED)) else ()
        model = (config.model_name, config.model, heads, params, inputs.tokenizer, labels)
        return Pretrained(*model, problem=config.objective.problem)


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
