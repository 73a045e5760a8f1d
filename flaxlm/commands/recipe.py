"""From a recipe and the overrides of a command line to a config."""

import ast
import copy
import dataclasses
import importlib.util
import pathlib
import typing
from collections.abc import Sequence

from ml_collections import ConfigDict

from flaxlm.commands import flags
from flaxlm.errors import ConfigError, FlaxlmError, MissingInput, nearest
from flaxlm.training import config as run_config
from flaxlm.training.unread import unread

PACKAGE = pathlib.Path(__file__).parents[1]
# The recipes beside the package, which an installation has within it.
RECIPES = PACKAGE / "configs" if (PACKAGE / "configs").is_dir() else PACKAGE.parent / "configs"


def load_recipe(spec: str) -> dict:
    """Return the nested dict of `FILE.py[:args]`, `NAME[:args]` or a run's `config.json`.

    NAME is one of the recipes that come with the package, where there is no such file.

    Raises:
      MissingInput: there is no such file.
      ConfigError: the file has no usable `get_config`.
    """
    name, _, argument = spec.partition(":")
    path, shipped = pathlib.Path(name), RECIPES / f"{name}.py"
    path = shipped if shipped.is_file() and not path.is_file() else path
    if not path.is_file():
        names = ", ".join(sorted(file.stem for file in RECIPES.glob("*.py")))
        raise MissingInput(f"--config: there is no file {name}, nor a recipe of that name: {names}")
    if path.suffix == ".json":
        of_run = path.name == "config.json"
        return run_config.read_run(str(path.parent)) if of_run else run_config.read_json(path)
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


def configure(nested: dict, overrides: dict[str, str], read: Sequence[str] = ()):
    """Return the RunConfig of a recipe and of overrides as they were typed.

    ConfigError for one that nothing would read; the keys `read` are read whatever the others say.
    """
    full, remaining = select(nested, overrides)
    kinds, changed = key_types(full), set()
    follows = full["model"]["vocab_size"] == run_config.model_vocab(full["tokenizer"])
    for key, text in remaining.items():
        if key not in kinds:
            near = [k for k in kinds if k.startswith(key.partition(".")[0] + ".")] or list(full)
            raise ConfigError(
                f"config key {key} is not known{nearest(key, kinds)}; valid: {', '.join(near)}"
            )
        section, _, name = key.rpartition(".")
        values, value = full[section] if section else full, read_value(key, kinds[key], text)
        changed |= {key} if value != values[name] else set()
        values[name] = value
    run_config.follow(full, remaining)
    size = run_config.model_vocab(full["tokenizer"])
    stated = nested.get("model", {}).get("vocab_size") or "model.vocab_size" in overrides
    if not stated and (follows or "tokenizer.vocab_size" in overrides):
        full["model"]["vocab_size"] = size
    config = run_config.build(full)
    for key, why in unread(config).items() if changed else ():
        if key in changed.difference(read):
            raise ConfigError(f"--config.{key}={overrides[key]} would have no effect: {why}")
    return config


def select(nested: dict, overrides: dict[str, str]) -> tuple[dict, dict[str, str]]:
    """Return a recipe with every default written out, and the overrides that are left.

    Overrides that select a dataclass or its defaults (a preset, `init`, a name) come first.
    """
    nested, overrides = copy.deepcopy(nested), dict(overrides)
    for key in run_config.SELECTORS:
        if key in overrides:
            section, _, name = key.rpartition(".")
            value = overrides.pop(key)
            if key == "task.name":
                run_config.choose_task(nested, value)
            target = nested.setdefault(section, {}) if section else nested
            if key == "model.preset":
                target.pop("name", None)
            target[name] = value
    return run_config.resolve(nested), overrides


def read_value(key: str, kind, text: str):
    """Return the value that was typed for a key; ConfigError where it is not of the key's type.

    A text that begins with a parenthesis or a bracket is a tuple where the key takes one.
    """
    kinds = {typing.get_origin(part) or part for part in typing.get_args(kind)} or {kind}
    kinds = {tuple} if typing.get_origin(kind) is tuple else kinds
    try:
        if tuple in kinds and (str not in kinds or text[:1] in ("(", "[")):
            value = ast.literal_eval(text)
            return tuple(value) if isinstance(value, list | tuple) else (value,)
        return TYPED[(kinds & TYPED.keys()).pop()](text)
    except (ValueError, SyntaxError, KeyError, RecursionError, MemoryError):
        if tuple in kinds and text[:1] not in ("(", "["):
            return (text,)  # one string
        raise ConfigError(
            f"config key {key}={text} must be of type {flags.type_name(kind)}"
        ) from None


TYPED = {
    str: str,
    bool: lambda text: BOOLEANS[text.lower()],
    int: lambda text: int(text, 0),
    float: float,
}
BOOLEANS = {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}


def key_types(full: dict) -> dict[str, type]:
    """Return {key: type} of a full config, in its order."""
    types = {key: type(value) for key, value in run_config.TOP.items()}
    for section, cls in run_config.section_classes(full).items():
        fields = {field.name: field.type for field in dataclasses.fields(cls) if field.init}
        # What chooses the dataclass, or its defaults, is no field of it.
        chosen = {key: str for key in ("name", "preset") if key in full[section]}
        types |= {f"{section}.{key}": kind for key, kind in (chosen | fields).items()}
    return types


def config_help(spec: str | None, overrides: dict[str, str]) -> str:
    """Return a line for each key of a config: its type, its value in this recipe, what it is."""
    full, _ = select(load_recipe(spec) if spec else {}, overrides)
    texts = flags.field_texts(run_config.RunConfig)
    for section, cls in run_config.section_classes(full).items():
        texts |= {f"{section}.{name}": text for name, text in flags.field_texts(cls).items()}
    for section, (table, _) in run_config.TABLES.items():
        texts[f"{section}.name"] = f"which: {', '.join(table)}"
    texts["model.preset"] = f"sizes by name: {', '.join(run_config.PRESETS)}"
    rows = []
    for key, kind in key_types(full).items():
        section, _, name = key.rpartition(".")
        value = (full[section] if section else full)[name]
        rows.append((f"--config.{key}", flags.type_name(kind), repr(value), texts.get(key, "")))
    return (
        f"{flags.listing(rows)}\n\nThe values are those of the recipe that --config names, if any. "
        "Another model.name, objective.name or\ntask.name beside --config.help lists its own keys."
    )
