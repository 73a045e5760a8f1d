"""What a person sees of a run: `metrics.jsonl`, TensorBoard events, MFU, the table of results."""

import collections
import errno
import json
import math
import pathlib
import time
import warnings

import jax
import numpy as np

from flaxlm import files, locks, tree
from flaxlm.errors import StorageError, cause_of
from flaxlm.progress import say, show
from flaxlm.training.logs import Events, Rows
from flaxlm.untrusted import file_bytes, parse_json, printable, sealed, unsealed

# Dense bfloat16 peak of one device, FLOP/s, from the makers' data sheets.
PEAK_FLOPS = {
    "A100": 312e12,
    "H100": 989e12,
    "H200": 989e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,
    "TPU v6": 918e12,
}


def peak_flops() -> float:
    """Return the bfloat16 peak of all devices together, or 0 where it is not known (CPUs)."""
    kind = jax.devices()[0].device_kind
    return next((v for k, v in PEAK_FLOPS.items() if k in kind), 0.0) * jax.device_count()


def flops_per_token(model, length: int, params) -> float:
    """Return the training FLOPs a token: 6 N + 12 · layers · heads · head size · length.

    Kaplan et al. (2020), section 2.1, with the attention term of Chowdhery et al. (2022),
    appendix B. N leaves out what is only looked up: positions, types, and an untied token table.
    `model` is its config, `length` that of a row.
    """
    looked_up = r"embed/(position|token_type)" + (
        "" if getattr(model, "tied", True) else "|embed/token"
    )
    counted = sum(
        math.prod(leaf.shape)
        for path, leaf in tree.flatten(params).items()
        if not tree.first_match([(looked_up, True)], path)
    )
    attention = 0
    if hasattr(model, "num_heads"):
        attention = model.num_layers * model.num_heads * model.head_dim * length
    return 6.0 * counted + 12.0 * attention


class MetricWriter:
    """Writes training metrics without making the device wait.

    `push` takes the step's device arrays and starts their copy to the host; a row is written when
    a later push finds the values there. At most `lag` steps are in flight, which also bounds how
    far the host runs ahead.
    """

    def __init__(
        self, workdir: pathlib.Path, config, tokens: int, flops: float, step: int, scored=None
    ):
        """Go on after `step`, of which evaluations are known up to `scored`; see `Rows`."""
        self.config, self.tokens, self.flops = config, tokens, flops
        self.lag, self.peak = 2, peak_flops()
        self.pending: collections.deque = collections.deque()
        self.clock = None
        self.logs: list[Rows | Events] = []
        if jax.process_index() == 0:
            rows, events = workdir / "metrics.jsonl", workdir / "tensorboard"
            self.logs = [Rows(rows, step, scored), Events(events, step)]
        self.last: dict = {}

    def push(self, step: int, metrics: dict) -> dict | None:
        """Hand over the metrics of `step`; return those of an earlier step that has ended."""
        for value in metrics.values():
            value.copy_to_host_async()
        self.pending.append((step, metrics))
        return self._pop() if len(self.pending) > self.lag else None

    def drain(self):
        """Wait for the steps in flight and yield their metrics."""
        while self.pending:
            yield self._pop()

    def _pop(self) -> dict:
        step, metrics = self.pending.popleft()
        row = {"step": step} | {k: float(np.asarray(v)) for k, v in metrics.items()}
        now = time.monotonic()
        if self.clock is None:  # the first step's time is compilation
            self.clock = (step, now)
        if step % self.config.log_every == 0:
            since, then = self.clock
            if step > since:
                row["tokens_per_second"] = (step - since) * self.tokens / (now - then)
                if self.peak:
                    row["mfu"] = row["tokens_per_second"] / self.tokens * self.flops / self.peak
            self.clock = (step, now)
            self.write(row)
        self.last = row
        return row

    def write(self, row: dict) -> None:
        """Append one row to `metrics.jsonl` and to the TensorBoard events."""
        for log in self.logs:
            log.row(row)

    def pause(self) -> None:
        """Forget the running clock, so that evaluation and saving do not count as training."""
        self.clock = None

    def close(self) -> None:
        """Say what could not be written."""
        for log in self.logs:
            log.close()


def table(rows: dict, title: str) -> None:
    """Print a short two-column table of results on standard output.

    The ends of an interval, `NAME_low` and `NAME_high`, stand behind their NAME's value.
    """
    if jax.process_index():
        return
    from rich.table import Table

    title, style = printable(title), {"show_header": False, "box": None, "padding": (0, 2)}
    grid = Table(title=title, title_justify="left", **style)
    for row in folded(rows).items():
        grid.add_row(*map(printable, row))
    show(grid)


def folded(rows: dict) -> dict[str, str]:
    """Return {name: text}, each value with its interval, or with what it is of, behind it."""
    texts = {k: f"{v:,.4f}" if isinstance(v, float) else str(v) for k, v in rows.items()}
    for name in rows:
        if f"{name}_read" in rows:
            texts[name] += f" of {texts.pop(f'{name}_read')}"
        if f"{name}_low" in rows and f"{name}_high" in rows:
            texts[name] += f" ({texts.pop(f'{name}_low')} to {texts.pop(f'{name}_high')})"
    return texts


def write_result(workdir: pathlib.Path, result: dict) -> bool:
    """Merge `result` into the run directory's `result.json`; return whether that changed it.

    It has a checksum of its figures, and a damaged one is moved aside. What other verbs wrote there
    stays, but for figures of another step than `NAME/step` of the result says: those of NAME, and
    of the comparison with a baseline. What killed verbs left aside in the directory goes.
    StorageError where it cannot be written.
    """
    path = workdir / "result.json"
    if jax.process_index():
        return False
    try:
        locks.sweep(workdir)
        with locks.locked(path):
            known, before = _known(path)
            for name in (name for name in result if name.endswith("/step")):
                then, now = known.get(name), result[name]
                if then != now:
                    old = (name.removesuffix("step"), "baseline/")
                    known = {k: v for k, v in known.items() if not k.startswith(old)}
                if isinstance(then, int) and now < then:
                    say(f"{path}: {old[0]}… are those of step {now} now, and were of step {then}")
            text = json.dumps(sealed(known | result), indent=2, sort_keys=True) + "\n"
            if text.encode() == before:
                return False
            files.replace(path, text)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {cause_of(error, path)}") from None
    return True


def _known(path: pathlib.Path) -> tuple[dict, bytes]:
    """Return what `result.json` holds, and its bytes; a damaged one is moved aside."""
    try:
        before = file_bytes(path)
        return unsealed(parse_json(before)), before
    except FileNotFoundError:
        return {}, b""
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno != errno.ENXIO:
            raise
        aside, cause = path.with_name("result.json.damaged"), getattr(error, "strerror", error)
    files.rename(path, aside)
    warnings.warn(
        f"{path} was damaged, and is {aside.name} now: {cause}; what verbs found before is to be "
        "found again",
        stacklevel=3,
    )
    return {}, b""


def report(workdir: pathlib.Path, result: dict, title: str, of: str = "") -> None:
    """Print the table and write `result.json`: what cannot be written is seen, or the reverse.

    The `step` of a result is that of the figures `of`/…; the step of a run is written by `train`.
    """
    try:
        table(result, title)
    finally:
        step = {"step": f"{of}/step"}
        write_result(workdir, {step.get(name, name): value for name, value in result.items()})
