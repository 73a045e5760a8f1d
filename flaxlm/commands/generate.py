"""`generate`: continue prompts, or fill [MASK] with an encoder."""

import dataclasses
import json
import pathlib

import jax

from flaxlm.commands.options import ProcessOptions, ReadOptions
from flaxlm.errors import ConfigError, MissingInput
from flaxlm.files import bare_lines, replace
from flaxlm.inference import generate as generation
from flaxlm.inference.settings import resolve
from flaxlm.progress import Progress, say
from flaxlm.training.metrics import report
from flaxlm.training.opened import open_run


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(ReadOptions, ProcessOptions, generation.GenerateConfig):
    """What is continued, and how.

    Attributes:
      prompt: a prompt; may be repeated
      prompts: file with a prompt a line
    """

    prompt: tuple[str, ...] = ()
    prompts: str | None = None


def run(options: Options, config) -> None:
    """Print the continuation of every prompt, or the filled text, and write them to a file."""
    prompts = list(options.prompt)
    if options.prompts:
        path = pathlib.Path(options.prompts)
        if not path.is_file():
            raise MissingInput(f"--prompts: there is no file {path}")
        prompts += [line for _, line in bare_lines(path)]
    if not prompts:
        raise ConfigError("nothing to generate from: give --prompt=TEXT or --prompts=FILE")
    generations = generate(config, options.place, prompts, options, options.checkpoint)
    lines = [json.dumps(dataclasses.asdict(g), ensure_ascii=False) + "\n" for g in generations]
    replace(options.place / "generations.jsonl", "".join(lines))
    for g in generations:
        print(f"--- {g.prompt}\n{g.text}")
    ids = sum(len(g.ids) for g in generations)
    counts = {"generate/texts": len(generations), "generate/tokens": ids}
    report(options.place, counts, "generate")


def generate(config, workdir: pathlib.Path, prompts: list[str], options, checkpoint: str) -> list:
    """Return a Generation for each prompt and sample."""
    devices = jax.local_devices()[:1]
    with open_run(config, workdir, checkpoint, devices=devices, say=say) as run:
        options, defaults = resolve(options, run.model)
        if defaults:
            say(defaults)
        asked = [config.objective.request(prompt, run.model.tokenizer) for prompt in prompts]
        total = len(prompts) * options.num_samples
        with Progress("generate", total, unit="texts") as progress:
            generations = generation.generate(run.model, asked, options, progress.update)
    each = len(generations) // len(prompts)
    return [dataclasses.replace(g, prompt=prompts[i // each]) for i, g in enumerate(generations)]
