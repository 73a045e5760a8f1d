"""Scores of a whole split: masked sums, perplexities, and a task's own metrics.

Every example or row counts exactly once, whatever the batch size: batches are padded with rows of
weight 0, sums are added in float64 on the host, and divisions are made once, at the end.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import jax
import numpy as np

from flaxlm import sharding
from flaxlm.data.order import join_rows
from flaxlm.errors import DataError
from flaxlm.inference import generate, likelihood
from flaxlm.inference.requests import Reader
from flaxlm.metrics.measure import bits, perplexity, ratio_measure
from flaxlm.progress import Progress
from flaxlm.training.program import Program


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What a split gave: {metric: value}, and of a task the examples with their answers."""

    scores: dict
    examples: Sequence = ()
    golds: Sequence = ()
    answers: Sequence = ()


def batch_size_of(program: Program) -> int:
    """Return the evaluation batch size, rounded up to what the mesh's batch axes divide."""
    config = program.config
    width = sharding.batch_width(program.device_mesh, config.sharding)
    wanted = config.eval.batch_size or config.train.batch_size
    return -(-wanted // width) * width


def global_batches(program: Program, batches, label: str = "", pause: Callable = lambda: None):
    """Yield every evaluation batch as global arrays; `label` and `pause` as in `evaluate_split`."""
    size = batches.batch_size
    start, stop = sharding.host_rows(program.batch_sharding, size)
    quiet = not label or jax.process_index() != 0
    with Progress(label, len(batches), unit="batches", quiet=quiet) as progress:
        for index in range(len(batches)):
            pause()
            host = batches.rows(index, start, stop)
            yield sharding.to_global(host, start, size, program.batch_sharding)
            progress.update(index + 1)


def judged(
    program: Program,
    params,
    corpora: list,
    sums: bool,
    outputs: bool,
    label: str = "",
    pause: Callable = lambda: None,
) -> tuple[dict, dict]:
    """Return what a model makes of all batches of a split, whichever of the two is wanted.

    `sums` are {name: (sum, weight)} of losses and metrics, in float64; `outputs` {name:
    [examples, …]} of the objective's `predict`, in the examples' own order. The device is given
    batch i + 1 before the host waits for what batch i gave.
    """
    if not (sums or outputs):
        return {}, {}

    def run(batch) -> tuple[dict, dict]:
        if sums and outputs:
            return program.judge(params, batch)
        return (program.sums(params, batch), {}) if sums else ({}, program.predict(params, batch))

    totals: dict[str, np.ndarray] = {}
    parts: list[tuple[np.ndarray, dict]] = []

    def add(ids, batch_sums, predictions):
        for name, pair in batch_sums.items():
            totals[name] = totals.get(name, 0.0) + np.asarray(pair, np.float64)
        if outputs:
            arrays = {name: np.asarray(array) for name, array in predictions.items()}
            parts.append((np.asarray(replicate_ids(ids)), arrays))

    waiting = None
    for batches in corpora:
        for batch in global_batches(program, batches, label, pause):
            judgement = run(batch)
            if waiting is not None:
                add(*waiting)
            waiting = batch.get("example_ids"), *judgement
    add(*waiting)
    pairs = {name: (float(total), float(weight)) for name, (total, weight) in totals.items()}
    return pairs, _in_order(parts) if outputs else {}


def _in_order(parts: list[tuple[np.ndarray, dict]]) -> dict[str, np.ndarray]:
    """Return {name: [examples, …]} from the ids and outputs of batches; ids below 0 are padding."""
    ids = np.concatenate([ids for ids, _ in parts])
    order = np.argsort(np.where(ids < 0, np.iinfo(ids.dtype).max, ids), kind="stable")
    places = np.split(np.argsort(order), np.cumsum([len(ids) for ids, _ in parts])[:-1])
    joined = join_rows([outputs for _, outputs in parts], places)
    return {name: array[: np.count_nonzero(ids >= 0)] for name, array in joined.items()}


def replicate_ids(ids):
    """Return the ids where every process can read them."""
    if ids.is_fully_addressable:
        return ids
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(ids, tiled=True)


def loss_metrics(objective, sums: dict, counts: dict) -> dict:
    """Return loss, its terms, metrics and perplexities from a split's sums, as `judged` has them.

    `counts` are the `bytes` and `words` of the split's text; empty where that has no meaning.
    """
    means = {name: total / max(weight, 1e-9) for name, (total, weight) in sums.items()}
    loss = sum(c * means[name] for name, c in objective.coefficients.items())
    result = {"loss": loss} | means
    if objective.perplexity_of:
        nats, tokens = sums[objective.perplexity_of]
        result["perplexity"] = perplexity(nats / max(tokens, 1e-9))
        result["tokens"] = tokens
        if counts and objective.scores_every_token:
            result["word_perplexity"] = perplexity(nats / max(counts["words"], 1))
            result["bits_per_byte"] = bits(nats) / max(counts["bytes"], 1)
    return result


def metric_names(program: Program, inputs, split: str) -> list[str]:
    """Return the names that `evaluate_split` gives in the loop, without computing anything."""
    spec = program.objective.batch_spec(batch_size_of(program), program.config.train.length)
    batch = {name: jax.ShapeDtypeStruct(*entry) for name, entry in spec.items()}
    sums = jax.eval_shape(program.sums, program.abstract_params, batch)
    fake = {name: (0.0, 1.0) for name in sums}
    names = []
    if program.objective.decomposes:
        names += loss_metrics(program.objective, fake, inputs.counts(split))
    task = program.config.task
    if task.objective:
        golds = task.golds(inputs.examples(split))
        if not known(golds):
            raise DataError(
                f"the {split} split has no right answers, so nothing can be chosen by them; set "
                "data.valid_path to a file that has, or eval.split=''"
            )
        names += list(task.metrics(task.perfect(golds), golds))
    return names


def known(golds: list) -> bool:
    """Return whether a split has right answers: all of its examples do, or none."""
    return golds[0] is not None


def evaluate_split(
    program: Program,
    params,
    inputs,
    split: str,
    label: str = "",
    full: bool = False,
    pause: Callable = lambda: None,
) -> Evaluation:
    """Return every metric of a split, and a task's answers; without right ones there are no scores.

    Args:
      program, params: the model.
      inputs: of the run.
      split: train, valid or test.
      label: of the progress bar; none without it.
      full: also what takes long: metrics of generated text, bootstrap intervals.
      pause: called between batches; may raise to give the evaluation up.
    """
    if program.config.task.ranks:
        return rank(program, params, inputs, split, label, full)
    corpora = inputs.evaluation(split, batch_size_of(program))
    objective, task = program.objective, program.config.task
    examples = inputs.examples(split) if task.objective else []
    golds = task.golds(examples)
    graded = not task.objective or known(golds)
    # What a batch sums up is a split's only where the loss is a sum over rows.
    wanted = graded and objective.decomposes
    predicted = bool(task.objective) and (not objective.generates or (graded and full))
    sums, outputs = judged(program, params, corpora, wanted, predicted, label, pause)
    scores = loss_metrics(objective, sums, inputs.counts(split)) if wanted else {}
    # In the loop texts are generated only where they decide.
    idle = objective.generates and program.config.eval.metric in scores and not full
    if not task.objective or idle:
        return Evaluation(scores)
    plan = corpora[0].source
    if objective.generates:
        if predicted:
            loss = ratio_measure("loss", -outputs["log_likelihood"], outputs["num_targets"])
            scores |= ends_of(loss.intervals())
        outputs = answers(program, params, inputs.tokenizer, plan, label and "generate", pause)
    answered = task.postprocess(outputs, examples)
    if graded:
        scores |= task.metrics(answered, golds)
    evaluation = Evaluation(scores, examples, golds, answered)
    return completed(evaluation, task, plan.report) if full else evaluation


def completed(evaluation: Evaluation, task, report: dict) -> Evaluation:
    """Return a task's evaluation with what is not made in the loop, if it has scores.

    How much was cut, in the `report` of the split's plan, is a score.
    """
    if not known(evaluation.golds):
        return evaluation
    cut = {name: count for name, count in report.items() if name.startswith("truncated")}
    ends = ends_of(task.intervals(evaluation.answers, evaluation.golds))
    return dataclasses.replace(evaluation, scores=evaluation.scores | cut | ends)


def ends_of(intervals: dict) -> dict[str, float]:
    """Return {name_low, name_high: its ends} of {name: interval}."""
    ends = {}
    for name, (low, high) in intervals.items():
        ends |= {f"{name}_low": low, f"{name}_high": high}
    return ends


def rank(program: Program, params, inputs, split: str, label: str, full: bool) -> Evaluation:
    """Return the metrics of a task that is answered by likelihoods; see `evaluate_split`."""
    task = program.config.task
    model = program.trained(params, inputs.tokenizer)
    examples, limit = inputs.examples(split), likelihood.reading_limit(model, task.max_length)
    asked = task.requests(examples, Reader(inputs.tokenizer, model.family, limit))
    flat = [request for requests in asked for request in requests]
    likelihoods = likelihood.score(model, flat, task.max_length, label)
    groups = likelihoods.groups([len(requests) for requests in asked])
    outputs = {"scores": groups, "masked": model.traits.bidirectional}
    answered, golds = task.postprocess(outputs, examples), task.golds(examples)
    cut = sum(bool(group.cut.any()) for group in groups)  # examples with a context cut to fit
    scores = {"examples": len(examples), "cut": cut}
    if known(golds):
        scores = task.metrics(answered, golds) | scores
        scores |= ends_of(task.intervals(answered, golds)) if full else {}
    return Evaluation(scores, examples, golds, answered)


def answers(
    program: Program, params, tokenizer, plan, label: str = "", pause: Callable = lambda: None
) -> dict[str, list]:
    """Return {text, log_likelihood} of what the model writes for each row of a plan, in order.

    Nothing is drawn: the texts are greedy, or the best of `objective.num_beams`.
    """
    objective = program.objective
    options = generate.GenerateConfig(
        max_new_tokens=objective.target_length,
        temperature=0.0,
        batch_size=batch_size_of(program),
        num_beams=objective.num_beams,
        length_penalty=objective.length_penalty if objective.num_beams > 1 else None,
    ).complete()
    prompts = objective.prompts(plan)
    quiet = not label or jax.process_index() != 0
    with Progress(label, len(prompts), unit="texts", quiet=quiet) as bar:

        def progress(done: int) -> None:
            pause()
            bar.update(done)

        model = program.trained(params, tokenizer)
        texts = generate.generate(model, prompts, options, progress)
    return {"text": [g.text for g in texts], "log_likelihood": [g.logprob for g in texts]}


def is_better(value: float, best: float, mode: str) -> bool:
    """Return whether a score is better than the best so far (NaN: none yet)."""
    if math.isnan(best):
        return not math.isnan(value)
    return value < best if mode == "min" else value > best
