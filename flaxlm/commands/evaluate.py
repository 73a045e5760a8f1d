"""`evaluate`: score a split with a run's checkpoint."""

import dataclasses
import pathlib

from flaxlm.commands.options import ProcessOptions, ReadOptions
from flaxlm.data.sources import SPLITS
from flaxlm.errors import choose
from flaxlm.evaluation.report import examine
from flaxlm.progress import say
from flaxlm.training.metrics import report
from flaxlm.training.opened import open_run


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(ReadOptions, ProcessOptions):
    """What is scored.

    Attributes:
      split: train, valid or test
    """

    split: str = "valid"


def run(options: Options, config) -> None:
    """Score a split and print the table."""
    choose("--split", options.split, SPLITS)
    result = evaluate(config, options.place, options.split, options.checkpoint)
    report(options.place, result, f"evaluate: {options.place.name}, {options.split}")


def evaluate(config, workdir: pathlib.Path, split: str, checkpoint: str) -> dict:
    """Return `{split/metric: value}` of a run's checkpoint over a whole split."""
    with open_run(config, workdir, checkpoint, say=say) as run:
        scores = examine(run.program, run.model.params, run.inputs, split, run.step)
        return scores | {"step": run.step}
