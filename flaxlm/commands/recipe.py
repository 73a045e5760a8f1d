"""The only place that knows flags: those of each verb, and how they and a recipe become a config.

`--config.section.key=value` overrides any field of a recipe.
"""

import copy
import pathlib
import re
from collections.abc import Callable

from absl import flags

from flaxlm.errors import ConfigError, FlaxlmError, MissingInput, nearest

VERBS = {
    "tokenize": "train the tokenizer if there is none, and write the token cache",
    "train": "pre-train, fine-tune (--config.init=RUN) or resume",
    "evaluate": "score a split with a run's checkpoint",
    "generate": "continue prompts, or fill [MASK] with an encoder",
    "embed": "write a vector for each text of a JSONL file",
    "inspect": "print step, config, parameter count and digests of a checkpoint",
    "convert": "turn a Hugging Face directory (hf:DIR) into a run directory, or the other way",
    "glue": "fine-tune and score every GLUE task of a folder, and print the table",
}
SCHEME = "hf:"  # what stands before the name or directory of a Hugging Face model
REQUIRED = {
    "convert": ("from", "to"),
    "embed": ("workdir", "input", "output"),
    "glue": ("data", "workdir"),
}
FOREIGN = ("evaluate", "generate", "embed", "inspect")  # verbs that read one as they read a run
FINETUNE = pathlib.Path(__file__).parents[2] / "configs" / "finetune.py"
# What `glue` says of every task by itself.
OWN = ("init", "task.name", "objective.name", "data.path", "data.split")
OWN += ("data.valid_path", "data.test_path")


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
    if verb == "glue":
        flags.DEFINE_string("init", "", "run directory or hf:NAME_OR_DIR to start from", **define)
        flags.DEFINE_string("data", None, "folder of the tasks' folders (CoLA, …)", **define)
        flags.DEFINE_list("tasks", [], "which: cola,sst2,…; all without it", **define)
    if verb in ("train", "evaluate", "generate", "glue"):
        flags.DEFINE_string(
            "coordinator", None, "host:port of process 0, for several processes", **define
        )
        flags.DEFINE_integer("num_processes", None, "number of processes", **define)
        flags.DEFINE_integer("process_id", None, "index of this process", **define)
    if verb in ("train", "convert", "glue"):
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
        flags.DEFINE_integer("num_beams", 1, "above 1: beam search, nothing is drawn", **define)
        flags.DEFINE_float("length_penalty", 0.6, "of beams; 0 prefers short texts", **define)
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
    from flaxlm.training.opened import INIT

    foreign = values.workdir if values.workdir.startswith(SCHEME) else ""
    if foreign and verb not in FOREIGN:
        raise ConfigError(
            f"{verb} writes to its run directory: name one with --workdir=DIR, and the model with "
            f"--config.init={foreign}"
        )
    if file is not None:
        recipe = load_recipe(file)
    elif verb == "glue":
        recipe = load_recipe(str(FINETUNE))
        if not values.init:
            raise ConfigError("--init=RUN or --init=hf:NAME_OR_DIR is required")
    elif foreign or (pathlib.Path(values.workdir) / "config.json").exists() or verb != "train":
        recipe = run_config.read_run(values.workdir)
    else:
        raise ConfigError(f"--config=FILE is required: {values.workdir} is not a run directory yet")
    if verb == "glue" and values.init:
        recipe["init"] = values.init
    if foreign:
        name = re.sub(r"[^\w.-]+", "-", foreign.removeprefix(SCHEME)).strip("-.")
        values.workdir, values.checkpoint = f"runs/hf-{name}", INIT
        recipe["init"] = foreign
    return recipe


def parse(verb: str, argv: list[str]) -> tuple[flags.FlagValues, dict[str, str]]:
    """Return the flags of a verb, and {key: text} of its `--config…` arguments.

    `--help` is answered here.
    """
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
    return values, given


def read_config(verb: str, argv: list[str]):
    """Return (flags, what the verb takes) from the arguments.

    That is a RunConfig; None where a verb needs no config; of `glue`, see `task_configs`.
    """
    values, given = parse(verb, argv)
    if verb == "convert" or (verb == "inspect" and values.workdir.startswith(SCHEME)):
        if given:
            raise ConfigError(f"--{next(iter(given))}: {verb} takes the config that stands there")
        return values, None
    recipe = find_recipe(verb, values, given.pop("config", None))
    overrides = {key.removeprefix("config."): value for key, value in given.items()}
    if verb == "glue":
        return values, task_configs(recipe, overrides)
    return values, configure(recipe, overrides)


def task_configs(recipe: dict, overrides: dict[str, str]) -> Callable:
    """Return a function (task's name, its `data` section) -> RunConfig of a recipe for all tasks.

    ConfigError where an override says what each task says by itself.
    """
    for key in OWN:
        if key in overrides:
            raise ConfigError(f"--config.{key}: glue decides that for every task by itself")

    def config_of(task: str, data: dict):
        from flaxlm.training import config as run_config

        own = copy.deepcopy(recipe)
        run_config.choose_task(own, task)
        own["data"] = own.get("data", {}) | data
        return configure(own, overrides)

    return config_of


def configure(recipe: dict, overrides: dict[str, str]):
    """Return the RunConfig of a recipe and of overrides as they were typed.

    Overrides that select a dataclass or its defaults (a preset, `init`, a name) are applied to
    the recipe first; then every default is written out, and the other overrides are parsed by
    ml_collections, typed as the values that they replace.
    """
    from ml_collections import ConfigDict, config_flags

    from flaxlm.training import config as run_config

    recipe, overrides = copy.deepcopy(recipe), dict(overrides)
    for key in run_config.SELECTORS:
        if key in overrides:
            section, _, name = key.rpartition(".")
            value = overrides.pop(key)
            if key == "task.name":
                run_config.choose_task(recipe, value)
            target = recipe.setdefault(section, {}) if section else recipe
            if key == "model.preset":
                target.pop("name", None)
            target[name] = value
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
    return run_config.build(full)
