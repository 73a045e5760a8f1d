"""The loop. One trainer for every model, objective and task.

    for each step: batch = f(seed, step); state = step(state, batch)

Everything else here decides when to evaluate, to save and to stop. What decides the run's future
is in the state, so a run that was killed and started again ends with the same bits.
"""

import contextlib
import dataclasses
import math
import os
import pathlib
import time
import warnings
from collections.abc import Callable

import jax
import numpy as np

from flaxlm import sharding, tree
from flaxlm.errors import Diverged, Preempted, choose
from flaxlm.evaluation import compare, evaluate, report
from flaxlm.processes import GivenUp, Interrupt, Watchdog, barrier
from flaxlm.progress import Progress, pulse, say
from flaxlm.training import manifest, reading
from flaxlm.training.checkpoint import Checkpointer
from flaxlm.training.config import RunConfig
from flaxlm.training.inputs import Inputs
from flaxlm.training.logs import Log
from flaxlm.training.metrics import MetricWriter, flops_per_token, table, write_result
from flaxlm.training.opened import load_params
from flaxlm.training.start import restore_or_init
from flaxlm.training.step import TrainProgram, check_batch, check_trained, make_train_step
from flaxlm.training.store import SKIPPED


def train(
    config: RunConfig,
    workdir: str | os.PathLike,
    allow_missing: str = "",
    started: float | None = None,
    make: Callable = make_train_step,
) -> dict:
    """Train, or go on training, in a run directory; return the contents of its `result.json`.

    Args:
      config, workdir: of the run; one process group at a time works in its directory.
      allow_missing: regex of parameter paths that may start fresh where `init` lacks them.
      started: when the process started, to report the time to the first step.
      make: (config, mesh, last step) -> TrainProgram.

    Raises:
      FlaxlmError: with the exit code that says what happened (see `flaxlm.errors`).
    """
    workdir = pathlib.Path(workdir).absolute()
    # What can be refused without the data is refused before reading it.
    mesh = sharding.make_mesh(config.sharding)
    check_batch(config, mesh)
    check_trained(config)
    with Watchdog(config.train.stuck_after), Inputs.open(config, workdir) as inputs:
        config = inputs.config
        batches = inputs.train(config.train.batch_size)
        shortened(batches.plan.report)
        total = config.train.total_steps(batches.plan.num_rows)
        if config.train.shorter:
            padding, cut = (batches.plan.report[name] for name in ("padding", "padding_cut"))
            say(f"buckets: padding {cut:.1%} instead of {padding:.1%}")
        facts = {"generation": inputs.generation}
        program = dataclasses.replace(make(config, mesh, total), facts=facts)
        best_by = {"metric": f"{config.eval.split}/{config.eval.metric}", "mode": config.eval.mode}
        attached = (inputs.identity(), inputs.files())
        saved = Checkpointer(workdir, config.checkpoint, *attached, **best_by)
        inputs.agree(inputs.trained_on)
        inputs.check_data(saved)
        with program.mesh(), saved:
            check_metric(program, inputs)
            pulse.note("the first parameters, or those of a checkpoint")
            epoch = batches.plan.num_rows
            state, step = restore_or_init(program, saved, allow_missing, total, epoch)
            loop = Loop(program, inputs, saved, total, started or time.time())
            return loop.run(state, step, batches)


LOSS = "loss"  # among a step's metrics: of training. Scores have their split's name before them.
LOST = {"dropped": "windows without the answer left out", "unknown": "words that became unk"}


def shortened(report: dict) -> None:
    """Warn of what training rows lack of their examples, given a plan's report."""
    total = report.get("examples", 0)
    cut = {name: count for name, count in report.items() if name.startswith("truncated") and count}
    lost = []
    if cut:
        counts = ", ".join(f"{count:,} {name}" for name, count in cut.items())
        lost = [f"{counts} to fit their rows ({max(cut.values()) / total:.1%})"]
    lost += [f"{report[name]:,} {text}" for name, text in LOST.items() if report.get(name)]
    if lost:
        warnings.warn(f"of {total:,} training examples: {'; '.join(lost)}", stacklevel=1)


def check_metric(program: TrainProgram, inputs: Inputs) -> None:
    """Refuse an impossible evaluation before the first step."""
    config, split = program.config, program.config.eval.split
    if split:
        inputs.evaluation(split, evaluate.batch_size_of(program))
        if config.baseline:
            name = report.place(inputs.workdir, config, split).name
            compare.reports(pathlib.Path(config.baseline), name)
        metrics = evaluate.metric_names(program, inputs, split)
        choose("eval.metric", config.eval.metric, metrics)


@dataclasses.dataclass
class Loop:
    """One run's loop over steps, with its evaluation, saving and stopping."""

    program: TrainProgram
    inputs: Inputs
    saved: Checkpointer
    total: int
    started: float
    figures: dict = dataclasses.field(default_factory=dict)  # what the last save said of its step
    scored: int = 0  # the step of the last evaluation
    kept: int = 0  # the step of the last save
    evaluated: tuple[int, evaluate.Evaluation] | None = None  # the last one, and the step it is of

    def __post_init__(self):
        self.config, self.workdir = self.program.config, self.inputs.workdir

    def run(self, state, step: int, batches) -> dict:
        """Run from `step` to the end; return the result."""
        first, config, tokens = step, self.config.train, batches.tokens
        self.scored, self.kept = int(state.scored), step
        if step:
            self.figures = dict(self.saved.manifest(step).metrics)
            self.saved.prune(step)  # a kill may have come between the save and that
        model, params = self.config.model, self.program.abstract_params
        flops = flops_per_token(model, config.length, params) * tokens
        self.writer = MetricWriter(self.workdir, config, tokens, flops, step, self.scored)
        self.interrupt = Interrupt()
        profile = config.profile_range() if config.profile_steps else (-1, -1)
        stream = self.inputs.stream(batches, self.program, step, self.total)
        quiet = jax.process_index() != 0
        with contextlib.ExitStack() as ends:
            self.progress = ends.enter_context(Progress("train", self.total, step, quiet=quiet))
            for part in (self.writer, self.interrupt):
                ends.callback(part.close)
            stopped, trace = self.stale(state), Log(self.workdir / "profile")
            # A run that was stopped during an evaluation still has it to do, and to save.
            if self.unscored(step):
                self.kept = step - 1
                state, stopped = self.after_step(state, step)
            while step < self.total and not stopped:
                if step == profile[0]:
                    with trace.spared(RuntimeError):
                        jax.profiler.start_trace(str(trace.path))
                pulse.note(f"the batch of step {step + 1}")
                batch = next(stream)
                pulse.note(f"step {step + 1}")
                state, metrics = self.program.step(state, batch)
                step += 1
                self.check(self.writer.push(step, metrics))
                if step == first + 1:
                    jax.block_until_ready(state.step)
                    say(f"first step done {time.time() - self.started:.1f} s after the start")
                self.saved.poll()
                if step == profile[1]:
                    jax.block_until_ready(state.step)
                    with trace.spared(RuntimeError):
                        jax.profiler.stop_trace()
                state, stopped = self.after_step(state, step)
            pulse.note(f"the checkpoint of step {step}")
            self.saved.wait()
        return self.finish(state, step, first)

    def after_step(self, state, step: int):
        """Evaluate and save if due; return (state, whether the run ends early here)."""
        last, leave, better = step == self.total, self.interrupt.due(), False
        due = self.owed(self.config.checkpoint.every, self.kept, step)
        scores = None
        if leave or due or self.unscored(step):
            self.drain()
            if skipped := self.skipped(state, step):
                if leave:
                    self.saved.wait()
                    raise Preempted(
                        f"asked to stop at step {step}; nothing is saved while updates are being "
                        f"skipped: the same command goes on from step {self.saved.latest() or 0}"
                    )
                if not last:  # both wait until updates are taken again
                    return state, False
                warnings.warn(f"the last {skipped} updates were skipped: not finite", stacklevel=1)
        if self.unscored(step) and not leave:
            try:
                state, better = self.evaluate(state, step)
                scores = self.scores
            except GivenUp:
                leave = True
        stopped = self.stale(state)
        keep = better and self.config.checkpoint.keep_best > 0
        if leave or stopped or keep or due:
            self.drain()
            pulse.note(f"the checkpoint of step {step}")
            self.save(state, step, scores or {}, leave)
        if leave:  # said only where it is true on all
            barrier("the checkpoint")
        if leave and (not last or self.unscored(step)):
            raise Preempted(
                f"asked to stop, and saved step {step} of {self.total}; the same command goes on "
                "from there"
            )
        return state, stopped

    def save(self, state, step: int, scores: dict, wait: bool) -> None:
        """Save the state with the figures of `result.json`, so that any later start can write it.

        Where no step was made since the state was restored, these are those it was saved with.
        """
        if row := self.writer.last:
            self.figures = {LOSS: row["loss"], SKIPPED: int(row["skipped"])}
        self.figures = manifest.finite(self.figures | scores)
        self.saved.save(step, state, metrics=self.figures, wait=wait)
        self.kept = step
        self.writer.pause()

    def skipped(self, state, step: int) -> int:
        """Return how many updates were skipped last; a state that holds NaN is Diverged."""
        if not tree.finite(state.params):
            raise self.diverged(f"parameters not finite at step {step}, after a finite gradient")
        return int(self.writer.last.get("skipped", 0))

    def unscored(self, step: int) -> bool:
        """Return whether an evaluation is due at `step` and the state has not seen it."""
        return bool(self.config.eval.split) and self.owed(self.config.eval.every, self.scored, step)

    def owed(self, every: int, since: int, step: int) -> bool:
        """Return whether what happens `every` steps, and at the end, is due, or had to wait.

        It was done last at the step `since`.
        """
        again = every and step // every > since // every
        return since < step and (step == self.total or bool(again))

    def stale(self, state) -> bool:
        """Return whether early stopping ends the run here."""
        patience = self.config.eval.patience
        return bool(patience) and int(state.stale) >= patience

    def check(self, row: dict | None) -> None:
        """Show a step's metrics; stop the run if its loss has not been finite for too long."""
        if row is None:
            return
        step, config = int(row["step"]), self.config.train
        if row["skipped"] > config.skip_nonfinite:
            raise self.diverged(
                f"loss or gradient not finite at step {step} (loss {row['loss']}), after "
                f"{config.skip_nonfinite} skipped updates"
            )
        text = ""
        if step % config.log_every == 0:
            rate = row.get("tokens_per_second", 0)
            text = f"loss {row['loss']:.4f}" + (f"  {rate:,.0f} tok/s" if rate else "")
        self.progress.update(step, text)

    def diverged(self, what: str) -> Diverged:
        """Return the error for a run that diverged, with the step before that is good."""
        good = self.saved.last_good(self.program.abstract_state)
        none = "no checkpoint is good" if self.saved.committed() else "no checkpoint was saved yet"
        return Diverged(f"{what}; last good checkpoint: step {good}" if good else f"{what}; {none}")

    def drain(self) -> None:
        """Look at every step in flight: a checkpoint must not hold a run that has diverged."""
        for row in self.writer.drain():
            self.check(row)

    def between(self) -> None:
        """Raise between two batches of an evaluation what ends the run: a failed save, a signal."""
        self.saved.poll()
        self.interrupt.check()

    def evaluate(self, state, step: int):
        """Score the evaluation split; return the state that records it, and whether it is best."""
        config = self.config.eval
        pulse.note(f"the evaluation of step {step}")
        source = (self.program, state.averaged(), self.inputs, config.split)
        evaluation = evaluate.evaluate_split(*source, label="evaluate", pause=self.between)
        self.evaluated, scores, self.scored = (step, evaluation), evaluation.scores, step
        value, best = scores[config.metric], float(state.best)
        better = evaluate.is_better(value, best, config.mode)
        stale = 0 if better else int(state.stale) + 1
        self.scores = {f"{config.split}/{name}": v for name, v in scores.items()}
        self.writer.write({"step": step} | self.scores)
        self.writer.pause()
        say(
            f"step {step}: {config.split}/{config.metric} {value:.4f}"
            + (" (best so far)" if better else f" (best {best:.4f}, {stale} evaluations ago)")
        )
        counters = {"best": value if better else best, "stale": stale, "scored": step}
        for name, number in counters.items():
            like = getattr(self.program.abstract_state, name)
            counters[name] = jax.device_put(np.asarray(number, like.dtype), like.sharding)
        return state.replace(**counters), better

    def finish(self, state, step: int, first: int) -> dict:
        """Write a task's report and `result.json`, or what of them is not there; print the table.

        All of it is a function of the last checkpoint, so a later start writes the same.
        """
        barrier("saved")
        figures = {name: math.nan if v is None else v for name, v in self.figures.items()}
        figures.pop(SKIPPED, None)
        loss = {"train/loss": figures.pop(LOSS)} if LOSS in figures else {}
        redone, scores, at = self.report(state, step, first)
        result = {"step": step} | loss | figures | scores
        result |= {"best": float(state.best)} if not np.isnan(float(state.best)) else {}
        judged = {f"{self.config.eval.split}/step": at} if at else {}
        redone += ["result.json"] * write_result(self.workdir, result | judged)
        ended = f"step {step} of {self.total} was reached before"
        if step < self.total:
            ended = f"eval.patience={self.config.eval.patience} ended the run at step {step}"
            ended += f" of {self.total}"
        if step == first:
            made = f"made what was not there: {', '.join(redone)}" if redone else "nothing to do"
            ended = f"{made}: {ended}"
        if step == first or step < self.total:
            say(ended)
        table(result, f"train: {self.workdir.name}")
        return result

    def report(self, state, step: int, first: int) -> tuple[list[str], dict, int]:
        """Examine a task with the checkpoint readers will use.

        Return (reports made, scores, the step that they, or else those saved, are of; 0: none).
        """
        config, split = self.config, self.config.eval.split
        if not config.task.objective or not split:
            return [], {}, self.scored
        at, params = step, state.averaged()
        if config.eval.patience:
            at = reading.find(self.workdir, "", config.eval).step
        there = report.stored(self.inputs, split, at) if step == first else None
        if there is not None:
            return [], there, at
        if config.eval.patience:
            params, at = load_params(self.program, self.workdir, "")
        scored, evaluation = self.evaluated or (None, None)
        known = evaluation if scored == at else None
        scores = report.examine(self.program, params, self.inputs, split, at, known)
        return [f"evaluations/{report.place(self.workdir, config, split).name}"], scores, at
