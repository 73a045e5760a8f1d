"""`generate`: continue prompts, or fill [MASK] with an encoder."""

import dataclasses
import json
import pathlib
import sys
from typing import ClassVar

import jax

from flaxlm.commands.options import ProcessOptions, ReadOptions
from flaxlm.errors import ConfigError, MissingInput
from flaxlm.files import Held, bare_lines, replace
from flaxlm.inference import generate as generation
from flaxlm.inference.settings import resolve
from flaxlm.processes import Watchdog
from flaxlm.progress import Progress, put, say
from flaxlm.training.metrics import report
from flaxlm.training.opened import open_run
from flaxlm.training.workdir import probe
from flaxlm.untrusted import printable


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(ReadOptions, ProcessOptions, generation.GenerateConfig):
    """What is continued, and how."""

    reads: ClassVar[str] = rf"{ReadOptions.reads}|train\.stuck_after"
    prompt: tuple[str, ...] = ()  # a prompt; may be repeated
    prompts: str | None = None  # file with a prompt a line


def run(options: Options, config) -> None:
    """Print the continuation of every prompt, or the filled text, and write them to a file."""
    prompts = list(options.prompt)
    if options.prompts:
        path = pathlib.Path(options.prompts)
        if not path.is_file():
            raise MissingInput(f"--prompts: there is no file {path}")
        held = Held(path)
        for _, line in bare_lines(path):
            held.add(line)
            prompts.append(line)
    if not prompts:
        raise ConfigError("nothing to generate from: give --prompt=TEXT or --prompts=FILE")
    probe(options.place)  # before the work whose results go there
    generations = generate(options, config, prompts)
    lines = [json.dumps(dataclasses.asdict(g), ensure_ascii=False) + "\n" for g in generations]
    try:
        replace(options.place / "generations.jsonl", "".join(lines))
    finally:
        # To a terminal what it can show; to a file or a pipe the text, byte by byte.
        terminal = sys.stdout.isatty()
        for g in generations:
            lines = f"--- {g.prompt}\n{g.text}".split("\n")
            put("\n".join(map(printable, lines) if terminal else lines))
    ids = sum(len(g.ids) for g in generations)
    counts = {"generate/texts": len(generations), "generate/tokens": ids}
    report(options.place, counts, "generate")


def generate(options: Options, config, prompts: list[str]) -> list:
    """Return a Generation for each prompt and sample."""
    options.check_family(config.model_name)  # before the weights are read
    devices = jax.local_devices()[:1]
    source = (config, options.place, options.checkpoint)
    with (
        Watchdog(config.train.stuck_after),
        open_run(*source, devices=devices, say=say) as opened,
    ):
        settings, defaults = resolve(options, opened.model)
        if defaults:
            say(defaults)
        requests = [config.objective.request(prompt, opened.model.tokenizer) for prompt in prompts]
        total = len(prompts) * settings.num_samples
        with Progress("generate", total, unit="texts") as progress:
            generations = generation.generate(opened.model, requests, settings, progress.update)
    each = len(generations) // len(prompts)
    return [dataclasses.replace(g, prompt=prompts[i // each]) for i, g in enumerate(generations)]
