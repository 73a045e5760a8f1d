"""Batches: a plan's rows through an objective, for training or evaluation, and their loader.

Batch i is a function of (seed, i). Rows are counted through all epochs: global row
g = i · batch_size + place, so that any host makes any part of any batch by itself.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from flaxlm.data.buckets import Buckets
from flaxlm.data.order import ExamplePlan, Plan, RowRandom, fetch_rows
from flaxlm.errors import ConfigError

Batch = dict[str, np.ndarray]


class Batches:
    """An endless sequence of training batches; a row's random numbers come from its global number.

    `buckets` are numbers of columns below `length` that a batch of short rows may have; `source`
    is the plan before bucketing.
    """

    def __init__(
        self,
        plan: Plan,
        objective,
        tokenizer,
        length: int,
        seed: int,
        batch_size: int,
        buckets: Sequence[int] = (),
    ):
        self.plan = self.source = plan
        self.objective, self.tokenizer = objective, tokenizer
        self.length, self.seed, self.batch_size = length, seed, batch_size
        if buckets:
            if not isinstance(plan, ExamplePlan):
                raise ConfigError(
                    f"train.buckets={tuple(buckets)}: {objective.name} fills its rows, so there is "
                    "nothing to cut; leave it out"
                )
            self.plan = Buckets(plan, length, buckets, batch_size, seed)

    @property
    def tokens(self) -> float:
        """Return the mean number of tokens of a batch, padding included."""
        return self.batch_size * getattr(self.plan, "mean_width", self.length)

    def width(self, step: int) -> int:
        """Return the columns of batch `step`."""
        return self.plan.width(step) if isinstance(self.plan, Buckets) else self.length

    def rows(self, step: int, start: int, stop: int) -> Batch:
        """Return rows start … stop − 1 of batch `step`, every array [stop − start, ...]."""
        rows = step * self.batch_size + np.arange(start, stop)
        raw = fetch_rows(self.plan, rows)
        rng = RowRandom(self.seed, rows)
        return self.objective.preprocess(raw, rng, self.tokenizer, self.width(step))

    def __getitem__(self, step: int) -> Batch:
        return self.rows(step, 0, self.batch_size)


class EvalBatches(Batches):
    """Each row of the plan exactly once; `len` says how many batches.

    They come in the plan's order or, in buckets, by length: `example_ids` identify them.

    The last batch is filled up with rows of `example_ids` −1 and zeros elsewhere, which have no
    weight. Random numbers come from (seed, example id), so no score depends on the batch size.
    """

    def __len__(self) -> int:
        return -(-self.plan.num_rows // self.batch_size)

    def rows(self, step: int, start: int, stop: int) -> Batch:
        """Return rows start … stop − 1 of batch `step`, every array [stop − start, ...]."""
        rows = step * self.batch_size + np.arange(start, stop)
        real = np.count_nonzero(rows < self.plan.num_rows)
        # A part that is all filling still needs the shapes of a row.
        raw = self.plan.fetch(0, rows[:real] if real else np.array([step * self.batch_size]))
        rng = RowRandom(self.seed, raw["example_ids"].astype(np.int64))
        batch = self.objective.preprocess(raw, rng, self.tokenizer, self.width(step))
        if real == len(rows):
            return batch
        filled = {}
        for name, array in batch.items():
            filled[name] = np.zeros((len(rows), *array.shape[1:]), array.dtype)
            filled[name][:real] = array[:real]
        filled["example_ids"][real:] = -1
        return filled


def loader(
    batches: Batches,
    start: int,
    stop: int,
    *,
    threads: int = 2,
    prefetch: int = 4,
    rows: tuple[int, int] | None = None,
) -> Iterator[Batch]:
    """Iterate over batches start … stop − 1 in order, prepared ahead of time by threads.

    Args:
      batches: where they come from.
      start, stop: steps.
      threads: with 0 each batch is made when it is asked for.
      prefetch: how many batches may wait.
      rows: the range of rows within each batch that this host needs; all by default.
    """
    # Imported here because grain takes a second to import, and inspecting a run does not need it.
    import grain

    first, last = rows or (0, batches.batch_size)
    steps = grain.MapDataset.range(start, stop).map(
        lambda step: batches.rows(int(step), first, last)
    )
    options = grain.ReadOptions(
        num_threads=threads, prefetch_buffer_size=max(prefetch, 1) if threads else 0
    )
    return iter(steps.to_iter_dataset(options))
