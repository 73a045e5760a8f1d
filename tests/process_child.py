"""One process of several: makes its rows of the first global batches and writes them down."""

import json
import pathlib
import sys

import jax
import numpy as np

from flaxlm import sharding
from flaxlm.training import config as run_config
from flaxlm.training.inputs import Inputs


def main(coordinator, count, index, recipe, workdir, batches, out) -> None:
    """Write `start` and each array [steps, rows, …] of this process."""
    if int(count) > 1:
        jax.distributed.initialize(coordinator, int(count), int(index))
    config = run_config.from_dict(json.loads(pathlib.Path(recipe).read_text()))
    size = config.train.batch_size
    rows = sharding.batch_sharding(sharding.make_mesh(config.sharding), config.sharding)
    with Inputs.open(config, pathlib.Path(workdir)) as inputs:
        start, stop = sharding.host_rows(rows, size)
        made = [inputs.train(size).rows(step, start, stop) for step in range(int(batches))]
        arrays = {name: np.stack([batch[name] for batch in made]) for name in made[0]}
        np.savez(out, start=start, stop=stop, **arrays)


if __name__ == "__main__":
    main(*sys.argv[1:])
