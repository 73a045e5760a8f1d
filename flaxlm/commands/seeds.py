"""The same run from several seeds: mean, spread and best, and whether it beats another run.

The seeds are trained one after the other in WORKDIR/seed_N, each a run of its own that goes on
where it was stopped. They differ in no shape and in no constant, so they share one compilation.
"""

import dataclasses
import os
import pathlib
from collections.abc import Callable

from flaxlm.errors import ConfigError
from flaxlm.evaluation import compare, report
from flaxlm.progress import say
from flaxlm.train import train
from flaxlm.training.config import RunConfig
from flaxlm.training.metrics import table, write_result
from flaxlm.training.step import TrainProgram, make_train_step


def train_seeds(
    config: RunConfig,
    workdir: str | os.PathLike,
    allow_missing: str = "",
    started: float | None = None,
) -> dict:
    """Train seeds `seed`, `seed + 1`, … of a config; return what stands in `result.json`.

    Args:
      config: with `seeds`, how many.
      workdir: of all of them.
      allow_missing, started: see `train`.

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
    make = _shared()
    for number in range(config.seeds):
        seed = config.seed + number
        say(f"seed {seed}, {number + 1} of {config.seeds}")
        one = dataclasses.replace(
            config, seed=seed, seeds=1, raw=config.raw | {"seed": seed, "seeds": 1}
        )
        train(one, workdir / f"seed_{seed}", allow_missing, started, make)
    name = report.place(workdir, config, config.eval.split).name
    metric, mode = config.eval.metric, config.eval.mode
    result = compare.summary(workdir, name, metric, mode, config.baseline)
    write_result(workdir, result)
    table(result, f"train: {workdir.name}, {config.seeds} seeds")
    return result


def _shared() -> Callable:
    """Return `make_train_step` that compiles for the first run, and lends that to the others."""
    made: list[TrainProgram] = []

    def make(config, mesh, total_steps: int) -> TrainProgram:
        if not made:
            made.append(make_train_step(config, mesh, total_steps))
        return dataclasses.replace(made[0], config=config)

    return make
