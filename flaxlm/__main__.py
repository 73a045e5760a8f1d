"""Command line: `python -m flaxlm <verb> --config=FILE[:args] --workdir=DIR [--config.a.b=value]`.

The only place that knows flags. `python -m flaxlm <verb> --help` lists a verb's flags.
"""

import os
import pathlib
import re
import sys
import time
import traceback
import warnings

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
    "embed": "write a vector for each text of a JSONL file",
    "inspect": "print step, config, parameter count and digests of a checkpoint",
    "convert": "turn a Hugging Face directory (hf:DIR) into a run directory, or the other way",
}
SCHEME = "hf:"  # what stands before the name or directory of a Hugging Face model
REQUIRED = {"convert": ("from", "to"), "embed": ("workdir", "input", "output")}
FOREIGN = ("evaluate", "generate", "embed", "inspect")  # verbs that read one as they read a run


def define_flags(verb: str) -> flags.FlagValues:
    """Return the flags of one verb; `--config.*` is added once the recipe is known."""
    values = flags.FlagValues()
    define = {"flag_values": values}
    flags.DEFINE_bool("help", False, "show this help", short_name="h", **define)
    if verb == "convert":
        flags.DEFINE_string("from", None, "run directory, hf:DIR or hf:NAME", **define)
        flags.DEFINE_string("to", None, "run directory or hf:DIR, made", **define)
        flags.DEFINE_string(
            "architecture", "", "class to write; empty: the one that fits", **define
        )
        flags.DEFINE_string("dtype", "", "of the parameters; empty: as they are stored", **define)
    else:
        place = f"run directory{' or hf:NAME_OR_DIR' if verb in FOREIGN else ''}"
        flags.DEFINE_string("workdir", None, place, **define)
    if verb in ("train", "evaluate", "generate"):
        flags.DEFINE_string(
            "coordinator", None, "host:port of process 0, for several processes", **define
        )
        flags.DEFINE_integer("num_processes", None, "number of processes", **define)
        flags.DEFINE_integer("process_id", None, "index of this process", **define)
    if verb in ("train", "convert"):
        flags.DEFINE_string(
            "allow_missing", "", "regex of parameters that may start fresh under init", **define
        )
    if verb in (*FOREIGN, "convert"):
        default = "latest" if verb == "inspect" else ""
        text = "latest, best, a step; empty: best where the run stops early, else latest"
        flags.DEFINE_string("checkpoint", default, text, **define)
    if verb == "evaluate":
        flags.DEFINE_string("split", "valid", "train, valid or test", **define)
    if verb == "embed":
        flags.DEFINE_string("input", None, "JSONL file with field text", **define)
        flags.DEFINE_string("output", None, "NumPy file to write, float32 [N, D]", **define)
        flags.DEFINE_string("pooling", "mean", "mean, cls or last", **define)
        flags.DEFINE_bool("normalize", False, "divide by the Euclidean length", **define)
        flags.DEFINE_integer("batch_size", 32, "texts a batch", **define)
        flags.DEFINE_integer("max_tokens", 0, "cut longer texts; 0: what the model reads", **define)
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
        "A verb on an existing run directory needs no --config. Where a run is read, "
        "hf:NAME_OR_DIR\nreads a Hugging Face model instead; --config.init=hf:NAME_OR_DIR starts "
        "from one.\n"
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


def find_recipe(verb: str, values, file: str | None) -> dict:
    """Return the nested dict of --config or, without it, of the run directory.

    A Hugging Face model in its place becomes `init`, and --workdir a directory for the results.
    """
    from flaxlm.training import config as run_config
    from flaxlm.training.start import INIT

    foreign = values.workdir if values.workdir.startswith(SCHEME) else ""
    if foreign and verb not in FOREIGN:
        raise ConfigError(
            f"{verb} writes to its run directory: name one with --workdir=DIR, and the model with "
            f"--config.init={foreign}"
        )
    if file is not None:
        recipe = load_recipe(file)
    elif foreign or (pathlib.Path(values.workdir) / "config.json").exists() or verb != "train":
        recipe = run_config.read_run(values.workdir)
    else:
        raise ConfigError(f"--config=FILE is required: {values.workdir} is not a run directory yet")
    if foreign:
        name = re.sub(r"[^\w.-]+", "-", foreign.removeprefix(SCHEME)).strip("-.")
        values.workdir, values.checkpoint = f"runs/hf-{name}", INIT
        recipe["init"] = foreign
    return recipe


def read_config(verb: str, argv: list[str]):
    """Return (flags, RunConfig) from the arguments; (flags, None) where a verb needs no config.

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
    for name in REQUIRED.get(verb, ("workdir",)):
        if not values[name].value:
            kind = "FILE" if name in ("input", "output") else "DIR"
            raise ConfigError(f"--{name}={kind} is required")
    if verb == "convert" or (verb == "inspect" and values.workdir.startswith(SCHEME)):
        if given:
            raise ConfigError(f"--{next(iter(given))}: {verb} takes the config that stands there")
        return values, None
    from flaxlm.training import config as run_config

    recipe = find_recipe(verb, values, given.pop("config", None))
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
    from flaxlm.training.sections import SPLITS
    from flaxlm.training.metrics import table

    if verb == "convert":
        result = verbs.convert(
            *(values["from"].value, values["to"].value, values.architecture, values.dtype),
            *(values.checkpoint, values.allow_missing),
        )
        table(result, f"convert: {values['to'].value}")
        return
    if config is None:
        table(verbs.inspect_pretrained(values.workdir), f"inspect: {values.workdir}")
        return
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
    elif verb == "embed":
        from flaxlm.embed import EmbedConfig

        options = EmbedConfig(**options_of(EmbedConfig, values))
        result = verbs.embed(
            config, workdir, values.input, values.output, options, values.checkpoint
        )
        verbs.report(workdir, result, f"embed: {values.output}")
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
    options = GenerateConfig(**options_of(GenerateConfig, values))
    made = verbs.generate(config, workdir, prompts, options, values.checkpoint)
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
