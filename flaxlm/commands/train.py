"""`train`: pre-train, fine-tune or resume; the same run from several seeds, summed up."""

import dataclasses
import os
import pathlib
from typing import ClassVar

import jax

from flaxlm import files
from flaxlm.commands import STARTED
from flaxlm.commands.options import FreshOptions, ProcessOptions, RunOptions
from flaxlm.errors import ConfigError
from flaxlm.evaluation import compare, report
from flaxlm.processes import Watchdog
from flaxlm.progress import say
from flaxlm.train import train
from flaxlm.training import metrics
from flaxlm.training.config import RunConfig, read_json
from flaxlm.training.newest import CONFIG, begun, is_run
from flaxlm.training.step import TrainProgram, make_train_step
from flaxlm.training.values import changes
from flaxlm.training.workdir import Workdir, unwritable


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(RunOptions, FreshOptions, ProcessOptions):
    """Where a run is trained."""

    joins: ClassVar[bool] = True

    def default_recipe(self) -> dict:
        """Return the config of the run that is gone on with."""
        if not self.foreign and not is_run(self.place):
            raise ConfigError(
                f"--config=FILE is required: {self.workdir} is not a run directory yet"
            )
        return super().default_recipe()


def run(options: Options, config) -> None:
    """Train a run, or the same run from several seeds."""
    if options.allow_missing and not (config.init and config.init_weights):
        raise ConfigError(
            f"--allow_missing={options.allow_missing} is for parameters that a model given by "
            "--config.init=RUN lacks, and none are loaded here; leave it out"
        )
    trainer = train_seeds if config.seeds > 1 else train
    trainer(config, options.place, options.allow_missing, started=STARTED)


def train_seeds(
    config: RunConfig,
    workdir: str | os.PathLike,
    allow_missing: str = "",
    started: float | None = None,
) -> dict:
    """Train `config.seeds` seeds, from `config.seed` on; return what stands in `result.json`.

    That is mean, spread and best of their scores, and whether they beat another run. They are
    trained one after the other in WORKDIR/seed_N, each a run of its own that goes on where it was
    stopped, and differ in no shape and in no constant, so they share one compilation.

    Args:
      config, allow_missing, started: see `train`.
      workdir: of all of them.

    Raises:
      ConfigError: there is no task whose scores could be summed up.
    """
    workdir = pathlib.Path(workdir).absolute()
    if not config.task.objective or not config.eval.split:
        raise ConfigError(
            f"seeds={config.seeds} sums up the scores of a task on eval.split; task.name is "
            f"{config.task_name!r} and eval.split {config.eval.split!r}: for these start one run a "
            "seed"
        )
    shared: list[TrainProgram] = []

    def make(config, mesh, total_steps: int) -> TrainProgram:
        if not shared:
            shared.append(make_train_step(config, mesh, total_steps))
        return dataclasses.replace(shared[0], config=config)

    watchdog = Watchdog(config.train.stuck_after)
    with watchdog, Workdir(workdir, lock=jax.process_index() == 0):
        if jax.process_index() == 0:
            _record(config, workdir)
        for number in range(config.seeds):
            seed = config.seed + number
            say(f"seed {seed}, {number + 1} of {config.seeds}")
            raw = config.raw | {"seed": seed, "seeds": 1}
            one = dataclasses.replace(config, seed=seed, seeds=1, raw=raw)
            train(one, workdir / f"seed_{seed}", allow_missing, started, make)
        name = report.place(workdir, config, config.eval.split).name
        result = compare.summary(
            workdir, name, config.eval.metric, config.eval.mode, config.baseline
        )
        metrics.report(workdir, result, f"train: {workdir.name}, {config.seeds} seeds")
        return result


def _record(config: RunConfig, workdir: pathlib.Path) -> None:
    """Write config.json for all seeds, so that they go on without a recipe.

    Another config is left to the first of them to refuse.
    """
    path = workdir / CONFIG
    if begun(workdir) or (path.exists() and changes(read_json(path), config.raw)):
        return
    try:
        files.replace(path, config.to_json())
    except OSError as error:
        raise unwritable(workdir, error) from None
