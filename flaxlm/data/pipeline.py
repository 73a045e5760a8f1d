"""Batches: a plan's rows through an objective, for training or evaluation, and their loader.

Batch i is a function of (seed, i). Rows are counted through all epochs: global row
g = i · batch_size + place, so that any host makes any part of any batch by itself. In length
buckets every host knows the lengths of the whole global batch, so that all agree on its columns.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from flaxlm.data.order import ExamplePlan, PerEpoch, Plan, Raw, RowRandom, fetch_rows, permutation
from flaxlm.errors import ConfigError, DataError

Batch = dict[str, np.ndarray]


class Buckets:
    """An ExamplePlan in batches of similar length, cut to need; a Plan for one batch size.

        an epoch's examples, permuted → windows of WINDOW batches → sorted by length → cut into
        batches → the batches of a window permuted

    Every example still comes exactly once per epoch. A batch across the border of two epochs takes
    rows of both. Of a plan that is not shuffled, the whole epoch is sorted.

    Args:
      plan: where the rows come from.
      length: columns of its rows.
      buckets: smaller numbers of columns that a batch may have instead, ascending.
      batch_size: rows of a batch.
      seed: of the order of batches.

    Attributes:
      report: the plan's, with the share of `padding` in rows of `length` and, as `padding_cut`,
        in the first epoch's batches as they are cut.
      mean_width: mean number of columns of a row in the first epoch.
    """

    WINDOW = 50

    def __init__(
        self, plan: ExamplePlan, length: int, buckets: Sequence[int], batch_size: int, seed: int
    ):
        self.plan, self.length, self.batch_size, self.seed = plan, length, batch_size, seed
        self.num_rows = plan.num_rows
        self._widths = np.array([*buckets, length])
        self._lengths = plan.lengths(length)
        self._epoch = PerEpoch(self._order)
        rows = self._lengths[self._epoch(0)]
        edges = np.arange(0, self.num_rows, batch_size)
        widths = self._fit(np.maximum.reduceat(rows, edges))
        self.mean_width = float(widths @ np.diff(edges, append=self.num_rows)) / self.num_rows
        real = float(rows.mean())
        padding = {"padding": 1 - real / length, "padding_cut": 1 - real / self.mean_width}
        self.report = plan.report | padding

    def _fit(self, lengths: np.ndarray) -> np.ndarray:
        """Return the smallest number of columns that holds each length."""
        return self._widths[np.searchsorted(self._widths, lengths)]

    def _order(self, epoch: int) -> np.ndarray:
        """Return the examples of an epoch, int64 [N], in the order of its rows."""
        examples = self.plan.order(epoch)
        if not self.plan.shuffle:
            return examples[np.argsort(self._lengths[examples], kind="stable")]
        # Batches are counted through all epochs, so the first and the last of this one may be
        # parts, completed by the epochs beside it.
        begin = -(epoch * self.num_rows % self.batch_size)
        edges = np.arange(begin, self.num_rows + self.batch_size, self.batch_size)
        edges = np.unique(np.clip(edges, 0, self.num_rows))
        ordered = np.empty_like(examples)
        for first in range(0, len(edges) - 1, self.WINDOW):
            window = edges[first : first + self.WINDOW + 1]
            members = examples[window[0] : window[-1]]
            members = members[np.argsort(self._lengths[members], kind="stable")]
            turns = permutation(self.seed, f"buckets {first}", epoch, len(window) - 1)
            taken = 0
            for start, stop in zip(window[turns], window[turns + 1], strict=True):
                ordered[start:stop] = members[taken : taken + stop - start]
                taken += stop - start
        return ordered

    def width(self, step: int) -> int:
        """Return the columns of batch `step`: all that its longest row needs."""
        # The last batch of a sorted epoch is filled up with the shortest rows, which need nothing.
        rows = step * self.batch_size + np.arange(self.batch_size)
        epoch, index = np.divmod(rows, self.num_rows)
        longest = max(
            self._lengths[self._epoch(int(e))[index[epoch == e]]].max() for e in np.unique(epoch)
        )
        return int(self._fit(longest))

    def fetch(self, epoch: int, index: np.ndarray) -> Raw:
        """Return the rows of an epoch, as wide as the widest of their batches."""
        steps = np.unique((epoch * self.num_rows + index) // self.batch_size)
        width = max(self.width(int(step)) for step in steps)
        return self.plan.take(self._epoch(epoch)[index], self.length, width)


class Batches:
    """An endless sequence of training batches; a row's random numbers come from its global number.

    `buckets` are as for `Buckets`; `source` is the plan without them.
    """

    def __init__(
        self, plan: Plan, objective, tokenizer, length: int, seed: int, batch_size: int, buckets=()
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
        raw = _named(lambda chosen: fetch_rows(self.plan, chosen), rows)
        rng = RowRandom(self.seed, rows)
        return self.objective.preprocess(raw, rng, self.tokenizer, self.width(step))

    def __getitem__(self, step: int) -> Batch:
        return self.rows(step, 0, self.batch_size)


def _named(fetch: Callable[[np.ndarray], Raw], rows: np.ndarray) -> Raw:
    """Return `fetch(rows)`; a DataError names the first row that has what is wrong."""
    try:
        return fetch(rows)
    except DataError:
        for row in rows:
            try:
                fetch(row[None])
            except DataError as error:
                raise DataError(f"row {row:,} of the data's order: {error}") from None
        raise


class EvalBatches(Batches):
    """Each row of the plan exactly once, in its order or, in buckets, by length.

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
        wanted = rows[:real] if real else np.array([step * self.batch_size])
        raw = _named(lambda chosen: self.plan.fetch(0, chosen), wanted)
        rng = RowRandom(self.seed, raw["example_ids"].astype(np.int64))
        batch = self.objective.preprocess(raw, rng, self.tokenizer, self.width(step))
        if real == len(rows):
            return batch
        filling = len(rows) - real
        batch = {
            name: np.pad(array[:real], [(0, filling)] + [(0, 0)] * (array.ndim - 1))
            for name, array in batch.items()
        }
        batch["example_ids"][real:] = -1
        return batch


def loader(
    batches: Batches, start: int, stop: int, *, threads=2, prefetch=4, rows: tuple | None = None
) -> Iterator[Batch]:
    """Iterate over batches start … stop − 1 in order, prepared ahead of time by threads.

    With `threads=0` each batch is made when it is asked for; at most `prefetch` wait. `rows` is
    the range of rows within each batch that this host needs; all by default.
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
