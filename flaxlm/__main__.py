"""Command line: `python -m flaxlm <verb> --config=FILE[:args] --workdir=DIR [--config.a.b=value]`.

The only place that knows flags. `python -m flaxlm <verb> --help` lists a verb's flags.
"""

import os
import pathlib
import sys
import time
import traceback

STARTED = time.time()

from absl import flags  # noqa: E402  (the clock starts before the imports)

from flaxlm.errors import (  # noqa: E402
    ConfigError,
    DataError,
    FlaxlmError,
    MissingInput,
    Preempted,
    StorageError,
    choose,
    nearest,
)

VERBS = {
    "tokenize": "train the tokenizer if there is none, and write the token cache",
    "train": "pre-train, fine-tune (--config.init=RUN) or resume",
    "evaluate": "score a split with a run's checkpoint",
    "generate": "continue prompts, or fill [MASK] with an encoder",
    "inspect": "print step, config, parameter count and digests of a checkpoint",
}


def define_flags(verb: str) -> flags.FlagValues:
    """Return the flags of one verb; `--config.*` is added once the recipe is known."""
    values = flags.FlagValues()
    define = {"flag_values": values}
    flags.DEFINE_string("workdir", None, "run directory", **define)
    flags.DEFINE_bool("help", False, "show this help", short_name="h", **define)
    if verb in ("train", "evaluate", "generate"):
        flags.DEFINE_string(
            "coordinator", None, "host:port of process 0, for several processes", **define
        )
        flags.DEFINE_integer("num_processes", None, "number of processes", **define)
        flags.DEFINE_integer("process_id", None, "index of this process", **define)
    if verb == "train":
        flags.DEFINE_string(
            "allow_missing", "", "regex of parameters that may start fresh under init", **define
        )
    if verb in ("evaluate", "generate", "inspect"):
        flags.DEFINE_string("checkpoint", "latest", "latest, best, or a step", **define)
    if verb == "evaluate":
        flags.DEFINE_string("split", "valid", "train, valid or test", **define)
    if verb == "generate":
        flags.DEFINE_multi_string("prompt", [], "a prompt; may be repeated", **define)
        flags.DEFINE_string("prompts", None, "file with a prompt a line", **define)
        flags.DEFINE_integer("max_new_tokens", 128, "bound on a continuation", **define)
        flags.DEFINE_float("temperature", 1.0, "0 is greedy", **define)
        flags.DEFINE_integer("top_k", 0, "sample among the k likeliest; 0 is all", **define)
        flags.DEFINE_float("top_p", 1.0, "sample among this share of the mass", **define)
        flags.DEFINE_integer("seed", 0, "seed of sampling", **define)
        flags.DEFINE_multi_string("stop", [], "stop before this text; may be repeated", **define)
        flags.DEFINE_integer("num_samples", 1, "continuations a prompt", **define)
        flags.DEFINE_integer("batch_size", 16, "prompts a batch", **define)
    return values


def usage() -> str:
    """Return the text of `python -m flaxlm --help`."""
    verbs = "\n".join(f"  {verb:10} {text}" for verb, text in VERBS.items())
    return (
        "usage: python -m flaxlm <verb> --config=FILE[:args] --workdir=DIR "
        f"[--config.section.key=value …]\n\n{verbs}\n\n"
        "A verb on an existing run directory needs no --config. "
        "python -m flaxlm <verb> --help lists a verb's flags."
    )


def load_recipe(spec: str) -> dict:
    """Return the nested dict of `FILE.py[:args]` or of a run's `config.json`.

    Raises:
      MissingInput: there is no such file.
      ConfigError: the file has no usable `get_config`.
    """
    import importlib.util

    from ml_collections import ConfigDict

    from flaxlm.training import config as run_config

    name, _, argument = spec.partition(":")
    path = pathlib.Path(name)
    if not path.is_file():
        raise MissingInput(f"--config: there is no file {name}")
    if path.suffix == ".json":
        return run_config.read_json(path)
    loader = importlib.util.spec_from_file_location(f"flaxlm_recipe_{path.stem}", path)
    if loader is None or loader.loader is None:
        raise ConfigError(f"--config: {name} is neither a Python file nor config.json")
    module = importlib.util.module_from_spec(loader)
    try:
        loader.loader.exec_module(module)
        recipe = module.get_config(argument) if argument else module.get_config()
    except FlaxlmError:
        raise
    except (Exception, SystemExit) as error:  # a recipe is any Python that its user wrote
        raise ConfigError(f"--config: {name}: {type(error).__name__}: {error}") from None
    recipe = recipe.to_dict() if isinstance(recipe, ConfigDict) else recipe
    run_config.check_sections(recipe)
    return recipe


def read_config(verb: str, argv: list[str]):
    """Return (flags, RunConfig) from the arguments.

    Overrides that select a dataclass or its defaults (a preset, `init`, a name) are applied to
    the recipe first; then every default is written out, and the other overrides are parsed by
    ml_collections, typed as the values that they replace.
    """
    from ml_collections import ConfigDict, config_flags

    values = define_flags(verb)
    plain = [a for a in argv if not a.startswith("--config")]
    given = {}
    for argument in argv:
        if argument.startswith("--config"):
            key, equals, value = argument[2:].partition("=")
            if not equals:
                raise ConfigError(f"write --{key}=value, in one argument")
            given[key] = value
    try:
        rest = values([f"flaxlm {verb}", *plain])[1:]
    except flags.Error as error:
        valid = [name for name in values if name not in ("h",)]
        raise ConfigError(f"{error}; flags: {', '.join('--' + v for v in sorted(valid))}") from None
    if values.help:
        print(f"python -m flaxlm {verb}: {VERBS[verb]}\n\n{values.get_help()}")
        raise SystemExit(0)
    if rest:
        raise ConfigError(f"argument {rest[0]!r} is not a flag; write --flag=value")
    if not values.workdir:
        raise ConfigError("--workdir=DIR is required")
    from flaxlm.training import config as run_config

    recipe_file = given.pop("config", None)
    if recipe_file is not None:
        recipe = load_recipe(recipe_file)
    elif (pathlib.Path(values.workdir) / "config.json").exists() or verb != "train":
        recipe = run_config.read_run(values.workdir)
    else:
        raise ConfigError(f"--config=FILE is required: {values.workdir} is not a run directory yet")
    overrides = {key.removeprefix("config."): value for key, value in given.items()}
    for key in run_config.SELECTORS:
        if key in overrides:
            section, _, name = key.rpartition(".")
            target = recipe.setdefault(section, {}) if section else recipe
            if key == "model.preset":
                target.pop("name", None)
            target[name] = overrides.pop(key)
    full = run_config.resolve(recipe)
    known = [f"{s}.{k}" for s, v in full.items() if isinstance(v, dict) for k in v]
    known += [k for k, v in full.items() if not isinstance(v, dict)]
    for key in overrides:
        if key not in known:
            section = key.partition(".")[0]
            near = [k for k in known if k.startswith(section + ".")] or list(full)
            raise ConfigError(
                f"config key {key} is not known{nearest(key, known)}; valid: {', '.join(near)}"
            )
    parser = flags.FlagValues()
    arguments = ["flaxlm", *(f"--config.{key}={value}" for key, value in overrides.items())]
    config_flags.DEFINE_config_dict(
        "config", ConfigDict(full), flag_values=parser, sys_argv=arguments
    )
    try:
        parser(arguments)
    except Exception as error:  # ml_collections raises a different one for every type
        raise ConfigError(f"config override: {error}") from None
    full = parser.config.to_dict()
    stated = recipe.get("model", {}).get("vocab_size") or "model.vocab_size" in overrides
    if "tokenizer.vocab_size" in overrides and not stated:
        full["model"]["vocab_size"] = full["tokenizer"]["vocab_size"]
    return values, run_config.build(full)


def set_up_jax(values, verb: str) -> None:
    """Choose platform, compilation cache and process group, before any device is touched."""
    if verb in ("inspect", "tokenize"):
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
    if coordinator or (detected and verb == "train" and _several_hosts()):
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
    from flaxlm import verbs
    from flaxlm.training.config import SPLITS

    workdir = pathlib.Path(values.workdir).absolute()
    if verb == "tokenize":
        verbs.report(workdir, verbs.tokenize(config, workdir), "tokenize")
    elif verb == "train":
        from flaxlm.train import train

        train(config, workdir, values.allow_missing, started=STARTED)
    elif verb == "evaluate":
        choose("--split", values.split, SPLITS)
        result = verbs.evaluate(config, workdir, values.split, values.checkpoint)
        verbs.report(workdir, result, f"evaluate: {workdir.name}, {values.split}")
    elif verb == "inspect":
        verbs.report(workdir, verbs.inspect(config, workdir, values.checkpoint), "inspect")
    else:
        generate(values, config, workdir)


def generate(values, config, workdir: pathlib.Path) -> None:
    """Print the continuation of every prompt, or the filled text, and write `generations.jsonl`."""
    import dataclasses
    import json

    from flaxlm import verbs
    from flaxlm.generate import GenerateConfig

    prompts = list(values.prompt)
    if values.prompts:
        path = pathlib.Path(values.prompts)
        if not path.is_file():
            raise MissingInput(f"--prompts: there is no file {path}")
        try:
            prompts += path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError as error:
            raise DataError(f"{path}, byte {error.start} is not UTF-8: {error.reason}") from None
    if not prompts:
        raise ConfigError("nothing to generate from: give --prompt=TEXT or --prompts=FILE")
    names = [field.name for field in dataclasses.fields(GenerateConfig)]
    options = {name: getattr(values, name) for name in names}
    options["stop"] = tuple(options["stop"])
    made = verbs.generate(config, workdir, prompts, GenerateConfig(**options), values.checkpoint)
    with (workdir / "generations.jsonl").open("w") as file:
        for generation in made:
            file.write(json.dumps(dataclasses.asdict(generation), ensure_ascii=False) + "\n")
            print(f"--- {generation.prompt}\n{generation.text}")
    ids = sum(len(generation.ids) for generation in made)
    verbs.report(workdir, {"generate/texts": len(made), "generate/tokens": ids}, "generate")


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
