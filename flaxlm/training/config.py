"""From a recipe's ConfigDict to one frozen `RunConfig`, with every default written out.

A recipe states what it changes. `expand` adds the presets' and the dataclasses' defaults, so that
each field can be overridden from the command line and stands in the run's `config.json`; `build`
splats each section into its dataclass, where a misspelt key cannot survive.
"""

import contextlib
import dataclasses
import json
import pathlib
import typing
import warnings
from collections.abc import Container

from flaxlm import files
from flaxlm.data.sources import DataConfig
from flaxlm.data.tokenizer import TokenizerConfig, load_tokenizer
from flaxlm.errors import ConfigError, MissingInput, Unsafe, choose, irregular, nearest
from flaxlm.interop.pretrained import SCHEME, Directory
from flaxlm.metrics.measure import SCORES, direction
from flaxlm.models import MODELS, PRESETS
from flaxlm.objectives import OBJECTIVES
from flaxlm.sharding import ShardingConfig
from flaxlm.tasks import TASKS
from flaxlm.tasks.labels import AUTO, labels_from_data
from flaxlm.training.earlier import as_today, family_of
from flaxlm.training.hub_recipe import hub_recipe
from flaxlm.training.lora import LoraConfig
from flaxlm.training.newest import CONFIG, is_run, may_move, newest
from flaxlm.training.optimizer import OptimizerConfig
from flaxlm.training.sections import DURATIONS, EvalConfig, TrainConfig
from flaxlm.training.store import CheckpointConfig
from flaxlm.training.values import as_tuples, changes, coerce
from flaxlm.untrusted import file_bytes, parse_json


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """One run: each section as the frozen dataclass that reads it, and the plain nested dict.

    Attributes:
      init_weights: False takes all but the parameters from `init`: the control of a fine-tuning
    """

    seed: int  # of the first parameters, the data's order, masks and dropout
    init: str  # run directory or hf:NAME_OR_DIR that model, tokenizer and parameters come from
    init_weights: bool
    seeds: int  # how many runs to train, from `seed` on, and to sum up
    baseline: str  # run directory whose answers to the same examples this run's are compared with
    tokenizer: TokenizerConfig
    data: DataConfig
    task: typing.Any
    model: typing.Any
    objective: typing.Any
    optimizer: OptimizerConfig
    lora: LoraConfig
    train: TrainConfig
    checkpoint: CheckpointConfig
    eval: EvalConfig
    sharding: ShardingConfig
    model_name: str
    objective_name: str
    task_name: str
    raw: dict

    def to_json(self) -> str:
        """Return the text of `config.json`: itself a valid `--config`."""
        return json.dumps(self.raw, indent=2, sort_keys=True) + "\n"


# Sections whose dataclass is chosen by their key `name`: section -> (table, default name).
TABLES = {
    "model": (MODELS, "decoder"),
    "objective": (OBJECTIVES, "causal_lm"),
    "task": (TASKS, "text"),
}
SECTIONS = {
    "tokenizer": TokenizerConfig,
    "data": DataConfig,
    "optimizer": OptimizerConfig,
    "lora": LoraConfig,
    "train": TrainConfig,
    "checkpoint": CheckpointConfig,
    "eval": EvalConfig,
    "sharding": ShardingConfig,
}
TOP = {"seed": 0, "init": "", "init_weights": True, "seeds": 1, "baseline": ""}
# Keys of a section of which one is given, and the others are 0.
EITHER = {"train": DURATIONS, "optimizer": ("warmup_steps", "warmup_fraction")}
# Objectives that read examples, and so need a task that has them.
SUPERVISED = {task.objective: name for name, task in reversed(TASKS.items()) if task.objective}
# Keys that choose a dataclass or its defaults: overrides of these come before all others.
# The task first: it brings an objective along, which may be another in the end.
SELECTORS = ("init", "task.name", "model.preset", "model.name", "objective.name")


def section_class(section: str, name: str = ""):
    """Return the dataclass behind a section; `name` is the row where a table decides it."""
    if section not in TABLES:
        return SECTIONS[section]
    table, _ = TABLES[section]
    row = table[choose(f"{section}.name", name, table)]
    return row.config_class if section == "model" else row


def section_classes(full: dict) -> dict:
    """Return {section: dataclass} of a full config."""
    return {s: section_class(s, full[s].get("name", "")) for s in (*SECTIONS, *TABLES)}


def expand(recipe: dict, inherited: dict | None = None) -> dict:
    """Return the recipe as a full nested dict, every field of every section written out.

    Args:
      recipe: nested dict of what the recipe and the selecting overrides state.
      inherited: `config.json` of the run that `init` names; its tokenizer and model stand where
        the recipe is silent. Elsewhere what its task brings along does.

    Raises:
      ConfigError: a section, key, preset or name is not known; the nearest valid ones are named.
    """
    check_sections(recipe)
    full = {key: recipe.get(key, value) for key, value in TOP.items()}
    silent = task_defaults(recipe.get("task", {}).get("name") or TABLES["task"][1])
    for section in (*SECTIONS, *TABLES):
        stated = recipe.get(section, {})
        base = dict(silent.get(section, {}))
        if section in ("tokenizer", "model"):
            base |= (inherited or {}).get(section, {})
        if section == "model":
            if preset := stated.get("preset", ""):
                base = dict(PRESETS[choose("model.preset", preset, PRESETS)])
            base["preset"] = preset or base.get("preset", "")
        if section in TABLES:
            base["name"] = stated.get("name") or base.get("name") or TABLES[section][1]
        cls = section_class(section, base.get("name", ""))
        if (family := family_of(base)) != base.get("name"):
            raise ConfigError(
                f"model.preset={base['preset']!r} is of model.name={family!r}, and model.name is "
                f"{base['name']!r}: leave one of them out, or set model.preset=''"
            )
        fields = [field for field in dataclasses.fields(cls) if field.init]
        valid = [*(field.name for field in fields), *(k for k in ("name", "preset") if k in base)]
        for key in (key for key in stated if key not in valid):
            raise ConfigError(
                f"config key {section}.{key} is not known{nearest(key, valid)}; "
                f"{section} has: {', '.join(valid)}"
            )
        defaults = {f.name: f.default for f in fields if f.default is not dataclasses.MISSING}
        full[section] = defaults | {k: v for k, v in base.items() if k in valid} | stated
        if section == "tokenizer":
            ids = model_vocab(full[section])
        if section == "model" and "vocab_size" not in stated | base:
            full[section]["vocab_size"] = ids
    follow(full, {f"{s}.{key}" for s in (*SECTIONS, *TABLES) for key in recipe.get(s, {})})
    return full


def model_vocab(tokenizer: dict) -> int:
    """Return the `model.vocab_size` that a `tokenizer` section asks for, 0 if only it will know.

    The section's own is set to what it has, where that is known and nothing is left to choose.
    """
    if tokenizer["kind"] == "byte":
        tokenizer["vocab_size"] = 5 + 256 + tokenizer["sentinels"]  # specials, bytes, sentinels
    return 0 if tokenizer["kind"] == "char" else tokenizer["vocab_size"]


def sized(config: RunConfig, workdir: pathlib.Path) -> RunConfig:
    """Return a config with `model.vocab_size` where it is 0: the run's own, or its tokenizer's."""
    if config.model.vocab_size:
        return config
    recorded = read_run(str(workdir)) if is_run(workdir) else {}
    size = recorded.get("model", {}).get("vocab_size", 0)
    size = size or load_tokenizer(workdir / "tokenizer").vocab_size
    raw = config.raw | {"model": config.raw["model"] | {"vocab_size": size}}
    model = dataclasses.replace(config.model, vocab_size=size)
    return dataclasses.replace(config, model=model, raw=raw)


def follow(full: dict, stated: Container[str]) -> None:
    """Let what was not stated follow what was: of `EITHER` one is given, a metric has its mode.

    A split that is not of files leaves those of before out. `full`, a config with every key, is
    changed in place; `stated` are the keys, as section.key, that were stated last. ConfigError
    where nobody knows which way the metric is better.
    """
    for section, names in EITHER.items():
        values = full[section]
        if any(values[name] for name in names if f"{section}.{name}" in stated):
            others = [name for name in names if f"{section}.{name}" not in stated]
            values |= {name: type(values[name])() for name in others}
    if "data.split" in stated and full["data"]["split"] != "file":
        held_out = ("valid_path", "test_path")
        full["data"] |= {name: "" for name in held_out if f"data.{name}" not in stated}
    if "eval.metric" in stated and "eval.mode" not in stated:
        metric = str(full["eval"]["metric"])
        if not direction(metric):
            raise ConfigError(
                f"eval.metric={metric!r} is not known{nearest(metric, SCORES)}; a score of "
                "your own needs eval.mode beside it, max or min"
            )
        full["eval"]["mode"] = direction(metric)


def task_defaults(name: str) -> dict:
    """Return {section: {key: value}} that a task brings along: its objective, and its own."""
    task = section_class("task", name)
    defaults = {section: dict(values) for section, values in task.defaults.items()}
    if task.objective:
        defaults["objective"] = {"name": task.objective} | defaults.get("objective", {})
    return defaults


def choose_task(recipe: dict, name: str) -> None:
    """Put a task in the place of a recipe's own, with what it brings along."""
    if recipe.get("task", {}).get("name") == name:
        return
    recipe["task"] = {"name": name}
    for section, values in task_defaults(name).items():
        kept = recipe.get(section, {})
        if values.get("name", kept.get("name")) != kept.get("name"):
            kept = {}  # said of another objective
        if values.get("split") == "whole":
            kept = {}  # said of the data that a run was trained on
        recipe[section] = kept | values


def check_sections(recipe) -> None:
    """Raise ConfigError unless `recipe` is a dict of known keys, and every section of it one."""
    if not isinstance(recipe, dict):
        raise ConfigError(f"a config is a dict of sections, not {type(recipe).__name__}")
    for key, value in recipe.items():
        choose("config key", key, (*TOP, *SECTIONS, *TABLES))
        if key in TOP:
            coerce(key, type(TOP[key]), value)
        elif not isinstance(value, dict):
            raise ConfigError(f"config section {key}={value!r} must be a dict of its keys")


def build(full: dict) -> RunConfig:
    """Return the RunConfig of an expanded nested dict; each dataclass checks its own values."""
    names, sections = {section: full[section]["name"] for section in TABLES}, {}
    for section in (*SECTIONS, "task", "model", "objective"):
        if section == "objective":
            values = _with_labels(full[section], sections["task"], sections["data"])
            full = full | {section: values}
        cls, values = section_class(section, full[section].get("name", "")), full[section]
        kinds = {f.name: f.type for f in dataclasses.fields(cls) if f.name in values}
        coerced = {k: coerce(f"{section}.{k}", kind, values[k]) for k, kind in kinds.items()}
        sections[section] = cls(**coerced)
    sections["objective"] = sections["objective"].for_model(names["model"])
    _check_task(names["task"], names["objective"])
    if sections["train"].microbatches > 1 and not sections["objective"].decomposes:
        raise ConfigError(
            f"train.microbatches={sections['train'].microbatches}: the loss of objective.name="
            f"{names['objective']!r} needs its whole batch at once; set it to 1"
        )
    if sections["train"].buckets and not TASKS[names["task"]].objective:
        raise ConfigError(
            f"train.buckets={sections['train'].buckets} is for tasks with examples; the rows of "
            f"task.name={names['task']!r} are full"
        )
    if sections["eval"].patience and not sections["checkpoint"].keep_best:
        raise ConfigError(
            f"eval.patience={sections['eval'].patience} ends with the best checkpoint, and "
            "checkpoint.keep_best=0 keeps none; set it to 1"
        )
    raw = json.loads(json.dumps(full))
    return RunConfig(
        **{key: full[key] for key in TOP},
        **sections,
        **{f"{section}_name": name for section, name in names.items()},
        raw=raw,
    )


def _with_labels(values: dict, task, data: DataConfig) -> dict:
    """Return the `objective` section with the labels of the data, if they are left to it."""
    stated = values.get("labels", True)
    if stated and stated not in (AUTO, (AUTO,), [AUTO]):
        return values
    whole = dataclasses.replace(data, split="whole", valid_path="", test_path="")
    counts = task.label_counts(data if stated else whole)
    if not counts:
        if stated:
            raise ConfigError("objective.labels='auto': this task finds no labels in its data")
        return values
    source = ", ".join(data.paths)
    return values | {"labels": labels_from_data(stated, counts, source, task.labels_key)}


def _check_task(task: str, objective: str) -> None:
    """Refuse a task and an objective that do not read the same rows."""
    wanted = TASKS[task].objective
    if wanted and wanted != objective:
        raise ConfigError(
            f"task.name={task!r} is trained with objective.name={wanted!r}, not {objective!r}"
        )
    if not wanted and objective in SUPERVISED and not TASKS[task].ranks:
        raise ConfigError(
            f"objective.name={objective!r} needs a task with examples, such as "
            f"task.name={SUPERVISED[objective]!r}; task.name is {task!r}"
        )


def from_dict(recipe: dict) -> RunConfig:
    """Return the RunConfig of a recipe given as a nested dict (what tests and notebooks want)."""
    return build(resolve(recipe))


def resolve(recipe: dict) -> dict:
    """Return `expand` of a recipe, with what the run that its `init` names hands down."""
    check_sections(recipe)
    init = recipe.get("init", "")
    if not init or _is_whole(recipe):  # as config.json of a run is, which needs no `init` any more
        return expand(recipe)
    inherited = read_run(init)
    if init.startswith(SCHEME) and "vocab_size" not in recipe.get("model", {}):
        inherited["model"]["vocab_size"] = Directory(init).rows()  # those of added tokens start
    return expand(recipe, inherited)


def _is_whole(recipe: dict) -> bool:
    """Return whether a recipe states all that an `init` hands down."""
    stated = {section: recipe.get(section, {}) for section in ("tokenizer", "model")}
    classes = {s: section_class(s, keys.get("name") or "decoder") for s, keys in stated.items()}
    return all(
        {f.name for f in dataclasses.fields(cls) if f.init} <= stated[s].keys()
        for s, cls in classes.items()
    )


def read_run(run: str) -> dict:
    """Return `config.json` of a run directory, or what stands for it at `hf:NAME_OR_DIR`.

    Where it is missing or cannot be read it is restored from the newest checkpoint's own.

    Raises:
      MissingInput: there is none, nor a checkpoint.
      ConfigError: it is damaged, and there is no checkpoint.
      Unsafe: it is not what the newest checkpoint was trained with.
    """
    if run.startswith(SCHEME):
        return hub_recipe(run)
    path, own = pathlib.Path(run) / CONFIG, newest(run)

    def theirs() -> dict:
        return as_today(read_json(own[0] / CONFIG), path)

    if not path.is_file() and own is None:
        raise MissingInput(f"{run} is not a run directory: there is no {path}")
    try:
        recipe = as_today(read_json(path), path)
    except (OSError, ConfigError) as error:
        there = path.exists()
        if there and not path.is_file():
            raise irregular(path) from None
        if own is None:
            raise
        why, cause = ("could not be read", f": {error}") if there else ("was missing", "")
        with contextlib.suppress(OSError):
            if there:  # somebody's hand may have changed it
                aside = path.with_name(f"{CONFIG}.damaged")
                files.rename(path, aside)
                cause += f"; what stood there is {aside.name} now"
            files.replace(path, file_bytes(own[0] / CONFIG))
        warnings.warn(f"{path} {why}, and is that of {own[0]} again{cause}", stacklevel=1)
        return theirs()
    if own and (changed := changes(expand(theirs()), expand(recipe), may_move(own))):
        raise Unsafe(
            f"{path} is not what {own[0]} was trained with; undo this, delete {path} to have it "
            f"restored, or take another run directory: {'; '.join(changed)}"
        )
    return recipe


def read_json(path: pathlib.Path) -> dict:
    """Return the nested dict of a JSON config, its lists as tuples; ConfigError if it is none."""
    try:
        recipe = parse_json(file_bytes(path), whole=False, once=True)
        check_sections(recipe)
    except (ValueError, ConfigError) as error:
        raise ConfigError(f"{path} is damaged or no config: {error}") from None
    return as_tuples(recipe)
