"""What a verb takes and needs: the dataclasses that its own `Options` is made of.

A field is a flag (`flags.py`); what a verb needs is said by class variables and methods.
"""

import dataclasses
import pathlib
import re
from typing import Any, ClassVar

from flaxlm.commands import recipe
from flaxlm.errors import ConfigError
from flaxlm.interop.pretrained import SCHEME
from flaxlm.models.heads import READ_BY
from flaxlm.training import config as run_config
from flaxlm.training.opened import INIT

# The keys that are read to open a trained model, those that name its heads, those that its data is
# read by, and of these the ones that are of training alone, or of scoring alone.
MODEL = r"model\.(?!\w+_dropout|init|scale_residual_init).*|eval\.(metric|mode|patience)"
HEADS = r"task\.name|objective\.(name|nsp)"
DATA = r"seed|task\..*|objective\.(?!label_smoothing|z_loss|class_weights|temperature).*"
DATA += r"|data\.(?!threads|prefetch).*|train\.(length|batch_size|buckets)"
TRAINED = r"objective\.(pack|negatives)"
SCORED = r"objective\.(num_beams|length_penalty|pooling)"
Rule = tuple[Any, str, str]  # whether it holds, a regex of keys, why they are not read then


@dataclasses.dataclass(frozen=True, kw_only=True)
class VerbOptions:
    """What every verb has, with what holds unless its own dataclass says otherwise."""

    takes_config: ClassVar[bool] = True  # --config and its overrides
    reads: ClassVar[str] = ".*"  # regex of the keys of a run's config that it looks at
    reads_hub: ClassVar[bool] = False  # hf:NAME_OR_DIR in the place of a run directory
    platform: ClassVar[str] = ""  # where jax runs unless JAX_PLATFORMS says so; '': what it finds
    joins: ClassVar[bool] = False  # processes that Slurm or a TPU slice started find each other
    foreign: ClassVar[bool] = False  # whether a Hugging Face model is given as the run

    def configure(self, nested: dict, overrides: dict[str, str]):
        """Return what `run` is given for a recipe and for overrides as they were typed."""
        return recipe.configure(nested, overrides)

    def unread(self, config) -> list[Rule]:
        """Return what the verb does not read of `reads`, given the others."""
        return []


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunOptions(VerbOptions):
    """A verb that works in a run directory."""

    workdir: str  # run directory

    @property
    def place(self) -> pathlib.Path:
        """The run directory."""
        return pathlib.Path(self.workdir).absolute()

    @property
    def foreign(self) -> bool:
        """Whether a Hugging Face model is given as the run."""
        return self.workdir.startswith(SCHEME)

    def default_recipe(self) -> dict:
        """Return the config of the run, or what stands for it at hf:NAME_OR_DIR."""
        return run_config.read_run(self.workdir)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointOptions:
    """A verb that reads a run's checkpoint."""

    checkpoint: str = ""  # latest, best, a step; empty: best where the run stops early, else latest


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReadOptions(RunOptions, CheckpointOptions):
    """A verb that reads a trained model: a run's, or a Hugging Face model."""

    reads_hub: ClassVar[bool] = True
    reads: ClassVar[str] = f"{MODEL}|{HEADS}"
    headless: ClassVar[bool] = False  # whether the model is opened without its heads
    workdir: str  # run directory or hf:NAME_OR_DIR

    def unread(self, config, compared: bool = False) -> list[Rule]:
        """Return what is of other heads, and of a best checkpoint that nobody asks for."""
        heads = [] if self.headless else [*config.objective.heads(config.model_name)]
        best = self.checkpoint == "best" or (not self.checkpoint and config.eval.patience)
        bare = config.model.pooler != "transform"
        read = f"of heads, {' and '.join(heads) or 'none'} is read"
        return [
            *((by.isdisjoint(heads), rf"model\.({keys})", read) for keys, by in READ_BY.items()),
            (bare and "mlm" not in heads, r"model\.transform_.*", read),
            (self.checkpoint, r"eval\.patience", f"--checkpoint={self.checkpoint} is read"),
            (not (best or compared), r"eval\.(metric|mode)", "nothing is chosen by it"),
        ]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FreshOptions:
    """A verb that may start parameters fresh.

    Attributes:
      allow_missing: regex of parameters that may start fresh where what is loaded lacks them
    """

    allow_missing: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProcessOptions:
    """A verb that may run as several processes."""

    coordinator: str | None = None  # host:port of process 0, for several processes
    num_processes: int | None = None  # number of processes
    process_id: int | None = None  # index of this process
    join_timeout: float | None = None  # seconds in which all have to come; 300 without it


def apart(arguments: list[str]) -> tuple[list[str], str | None, dict[str, str]]:
    """Return a verb's own arguments, what --config names, and {key: text} of --config.key=text.

    `--config.help` is the key `help`.
    """
    plain, typed = [], {}
    for argument in arguments:
        key, equals, value = argument[2:].partition("=")
        if not argument.startswith("--config"):
            plain.append(argument)
        elif not equals and key != "config.help":
            raise ConfigError(f"write --{key}=value, in one argument")
        elif key in typed:
            both = f"--{key}={typed[key]} and {argument}"
            raise ConfigError(f"{both} are both given; leave one of them out")
        else:
            typed[key] = value
    spec = typed.pop("config", None)
    return plain, spec, {key.removeprefix("config."): value for key, value in typed.items()}


def settle(verb: str, options, spec: str | None, overrides: dict[str, str]):
    """Return (options, config) from a verb's options and its `--config…` arguments.

    A Hugging Face model in the place of a run becomes `init`, and --workdir a directory for the
    results. The config is None where the verb takes none.
    """
    read = options.foreign and options.reads_hub
    if read and options.checkpoint not in (type(options).checkpoint, INIT):
        raise ConfigError(
            f"--checkpoint={options.checkpoint}: {options.workdir} is a model and no run, and "
            "has no checkpoints; leave it out"
        )
    if not options.takes_config:
        if spec or overrides:
            key = "config" if spec else f"config.{next(iter(overrides))}"
            raise ConfigError(f"--{key}: {verb} takes the config that stands there")
        return options, None
    if options.foreign and not options.reads_hub:
        flag = "--init" if hasattr(options, "init") else "--config.init"
        raise ConfigError(
            f"{verb} writes to its run directory: name one with --workdir=DIR, and the model with "
            f"{flag}={options.workdir}"
        )
    nested = options.default_recipe() if spec is None else recipe.load_recipe(spec)
    if options.foreign:
        if "init" in overrides:
            raise ConfigError(
                f"--workdir={options.workdir} and --config.init={overrides['init']} both name the "
                "model; leave one of them out"
            )
        nested["init"] = options.workdir
        name = re.sub(r"[^\w.-]+", "-", options.workdir.removeprefix(SCHEME)).strip("-.")
        options = dataclasses.replace(options, workdir=f"runs/hf-{name}", checkpoint=INIT)
    config = options.configure(nested, overrides)
    # A recipe repeats the command line of the run, of which a verb takes what it reads.
    rules = [rule for rule in options.unread(config) if rule[0]]
    for key in overrides if spec is None else ():
        reasons = [why for _, keys, why in rules if re.fullmatch(keys, key)]
        if reasons or not re.fullmatch(options.reads, key):
            flag, why = key.rpartition(".")[2], "".join(f": {reason}" for reason in reasons[:1])
            own = f"{verb} has --{flag} of its own" if hasattr(options, flag) else "leave it out"
            raise ConfigError(
                f"--config.{key}={overrides[key]} would have no effect in {verb}{why}; {own}"
            )
    return options, config
