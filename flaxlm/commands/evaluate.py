"""`evaluate`: score a split with a run's checkpoint."""

import pathlib

from flaxlm.evaluation.report import examine
from flaxlm.progress import say
from flaxlm.training.inputs import Inputs
from flaxlm.training.opened import INIT, load_for_reading, reader, require_step


def evaluate(config, workdir: pathlib.Path, split: str, checkpoint: str) -> dict:
    """Return `{split/metric: value}` of a run's checkpoint over a whole split."""
    require_step(config, workdir, checkpoint)
    with Inputs.open(config, workdir, write=checkpoint == INIT) as inputs:
        program = reader(config)
        with program.mesh():
            params, step = load_for_reading(program, workdir, checkpoint, say)
            return examine(program, params, inputs, split, step) | {"step": step}
