"""Length buckets: rows of similar length are batched together, and batches cut to what they need.

    an epoch's examples, permuted → windows of WINDOW batches → sorted by length → cut into
    batches → the batches of a window permuted

Every example still comes exactly once per epoch, batch i is still a function of (seed, i), and
every host knows the lengths of the whole global batch, so that all agree on its columns.
"""

from collections.abc import Sequence

import numpy as np

from flaxlm.data.order import ExamplePlan, PerEpoch, Raw, permutation


class Buckets:
    """An ExamplePlan in batches of similar length; a Plan for one batch size.

    Args:
      plan: where the rows come from.
      length: columns of its rows.
      buckets: smaller numbers of columns that a batch may have instead, ascending.
      batch_size: rows of a batch; rows are counted through all epochs, and a batch across the
        border of two takes rows of both.
      seed: of the order of batches. Of a plan that is not shuffled, the whole epoch is sorted.

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
            for turn in turns:
                start, stop = window[turn], window[turn + 1]
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
