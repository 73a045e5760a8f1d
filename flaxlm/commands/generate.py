"""`generate`: continue prompts, or fill [MASK] with an encoder."""

import dataclasses
import pathlib

import jax

from flaxlm.inference import generate as generation
from flaxlm.progress import Progress, say
from flaxlm.training.inputs import Inputs
from flaxlm.training.opened import INIT, load_for_reading, reader, require_step


def generate(config, workdir: pathlib.Path, prompts: list[str], options, checkpoint: str) -> list:
    """Return a Generation for each prompt and sample."""
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
