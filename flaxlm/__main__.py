"""Command line: `python -m flaxlm <verb> --config=FILE[:args] --workdir=DIR [--config.a.b=value]`.

`python -m flaxlm <verb> --help` lists a verb's flags; `flags.py` is the only place that knows them.
"""

import os
import pathlib
import sys
import time
import traceback
import warnings

STARTED = time.time()

from flaxlm.commands.recipe import VERBS, read_config, usage  # noqa: E402
from flaxlm.errors import (  # noqa: E402  (the clock starts before the imports)
    ConfigError,
    FlaxlmError,
    MissingInput,
    Preempted,
    StorageError,
    choose,
)


def set_up_jax(values, verb: str) -> None:
    """Choose platform, compilation cache and process group, before any device is touched."""
    if verb in ("inspect", "tokenize", "convert"):
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
    import jax

    if not jax.config.jax_compilation_cache_dir:
        home = os.environ.get("XDG_CACHE_HOME", "~/.cache")
        path = pathlib.Path(home).expanduser() / "flaxlm" / "xla"
        jax.config.update("jax_compilation_cache_dir", str(path))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    coordinator = getattr(values, "coordinator", None)
    if coordinator and (values.num_processes is None or values.process_id is None):
        raise ConfigError("--coordinator needs --num_processes and --process_id beside it")
    detected = any(name in os.environ for name in ("SLURM_NTASKS", "TPU_WORKER_HOSTNAMES"))
    if coordinator or (detected and verb in ("train", "glue") and _several_hosts()):
        jax.distributed.initialize(
            coordinator,
            values.num_processes,
            values.process_id,
            heartbeat_timeout_seconds=20,
        )


def _several_hosts() -> bool:
    hosts = os.environ.get("TPU_WORKER_HOSTNAMES", "").count(",") + 1
    return max(hosts, int(os.environ.get("SLURM_NTASKS", "1"))) > 1


def dispatch(verb: str, values, config) -> None:
    """Call what stands behind a verb, then write `result.json` and print its table."""
    from flaxlm.training.metrics import report, table
    from flaxlm.training.sections import SPLITS

    if verb == "convert":
        from flaxlm.commands.convert import convert

        result = convert(
            *(values["from"].value, values["to"].value, values.architecture, values.dtype),
            *(values.checkpoint, values.allow_missing),
        )
        table(result, f"convert: {values['to'].value}")
        return
    if config is None:
        from flaxlm.commands.inspect import inspect_pretrained

        table(inspect_pretrained(values.workdir), f"inspect: {values.workdir}")
        return
    workdir = pathlib.Path(values.workdir).absolute()
    if verb == "glue":
        from flaxlm.commands.glue import glue

        glue(config, pathlib.Path(values.data), workdir, values.tasks, values.allow_missing)
    elif verb == "tokenize":
        from flaxlm.commands.tokenize import tokenize

        report(workdir, tokenize(config, workdir), "tokenize")
    elif verb == "train":
        if config.seeds > 1:
            from flaxlm.commands.seeds import train_seeds as train
        else:
            from flaxlm.train import train
        train(config, workdir, values.allow_missing, started=STARTED)
    elif verb == "evaluate":
        from flaxlm.commands.evaluate import evaluate

        choose("--split", values.split, SPLITS)
        result = evaluate(config, workdir, values.split, values.checkpoint)
        report(workdir, result, f"evaluate: {workdir.name}, {values.split}")
    elif verb == "inspect":
        from flaxlm.commands.inspect import inspect

        report(workdir, inspect(config, workdir, values.checkpoint), "inspect")
    elif verb == "embed":
        from flaxlm.commands.embed import embed
        from flaxlm.inference.embed import EmbedConfig

        options = EmbedConfig(**options_of(EmbedConfig, values))
        result = embed(config, workdir, values.input, values.output, options, values.checkpoint)
        report(workdir, result, f"embed: {values.output}")
    else:
        generate(values, config, workdir)


def options_of(cls, values) -> dict:
    """Return the flags that a dataclass of options has fields for."""
    import dataclasses

    given = {field.name: getattr(values, field.name) for field in dataclasses.fields(cls)}
    return {name: tuple(v) if isinstance(v, list) else v for name, v in given.items()}


def generate(values, config, workdir: pathlib.Path) -> None:
    """Print the continuation of every prompt, or the filled text, and write `generations.jsonl`."""
    import dataclasses
    import json

    from flaxlm import files
    from flaxlm.commands.generate import generate as make
    from flaxlm.inference.generate import GenerateConfig
    from flaxlm.training.metrics import report

    prompts = list(values.prompt)
    if values.prompts:
        path = pathlib.Path(values.prompts)
        if not path.is_file():
            raise MissingInput(f"--prompts: there is no file {path}")
        prompts += [line for _, line in files.bare_lines(path)]
    if not prompts:
        raise ConfigError("nothing to generate from: give --prompt=TEXT or --prompts=FILE")
    options = GenerateConfig(**options_of(GenerateConfig, values))
    made = make(config, workdir, prompts, options, values.checkpoint)
    with (workdir / "generations.jsonl").open("w") as file:
        for generation in made:
            file.write(json.dumps(dataclasses.asdict(generation), ensure_ascii=False) + "\n")
            print(f"--- {generation.prompt}\n{generation.text}")
    ids = sum(len(generation.ids) for generation in made)
    report(workdir, {"generate/texts": len(made), "generate/tokens": ids}, "generate")


def run(argv: list[str]) -> None:
    """Run one command; raises FlaxlmError for every expected failure."""
    if not argv:
        raise ConfigError(f"no verb is given; choose one of: {', '.join(VERBS)}, --help")
    if argv[0] in ("-h", "--help", "help"):
        print(usage())
        return
    verb = choose("verb", argv[0], VERBS)
    values, config = read_config(verb, argv[1:])
    set_up_jax(values, verb)
    dispatch(verb, values, config)


def main() -> int:
    """Return the exit code (see `flaxlm.errors`); what was not foreseen keeps its traceback."""
    warnings.showwarning = lambda message, *_: print(f"warning: {message}", file=sys.stderr)
    try:
        run(sys.argv[1:])
    except FlaxlmError as error:
        return fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        return fail("interrupted", Preempted.exit_code)
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        missing = isinstance(error, FileNotFoundError)
        code = (MissingInput if missing else StorageError).exit_code
        return fail(f"{place}{error.strerror or error}", code)
    except Exception as error:
        traceback.print_exc()
        return fail(f"a bug in flaxlm: {type(error).__name__}: {error}", FlaxlmError.exit_code)
    return 0


def fail(message: str, code: int) -> int:
    """Print `message` as one line, whatever a library put into it; return `code`."""
    print(f"error: {' '.join(message.split())}", file=sys.stderr, flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
