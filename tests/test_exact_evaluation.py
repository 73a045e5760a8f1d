"""An evaluation is the same at any batch size and on any mesh, and counts each example once."""

import dataclasses
import json
import random

import jax
import numpy as np
import pytest
import tiny_runs as tiny

from flaxlm import sharding
from flaxlm.evaluation.evaluate import evaluate_split
from flaxlm.training import config as run_config
from flaxlm.training.inputs import Inputs
from flaxlm.training.program import make_program

# One example of 23 more or less moves a mean by 4 %: rounding is given 1e-5 (80 eps), for sums of
# 24 columns through two layers.
N = 23  # a prime: no batch size divides it
DRAW = random.Random(3)
TEXTS = ["".join(DRAW.choices("abcdefgh 中文", k=DRAW.randint(1, 24))) + "x" for _ in range(N)]
TAGS = ("O", "B-x", "I-x")

# Metrics that are sums of real numbers; the others count.
SUMS = ("loss", "perplexity", "ece", "brier", "best_threshold", "pearson", "mse", "mae")
SUMS += ("regression", "in_batch", "token_classification", "question_answering", "classification")

# {task: (family, objective, task fields, a row of its file)}
TASKS = {
    "classification": (
        "masked", dict(labels=("a", "b")), {}, lambda i: dict(text=TEXTS[i], label="ab"[i % 2]),
    ),
    "regression": ("masked", {}, {}, lambda i: dict(text=TEXTS[i], score=i % 6)),
    "similarity": (
        "masked", {}, {}, lambda i: dict(sentence1=TEXTS[i], sentence2=TEXTS[-i], score=i % 6),
    ),
    "text_to_text": (
        "spans", dict(target_length=4), {},
        lambda i: dict(input=TEXTS[i][:4], target=TEXTS[-i][:4]),
    ),
    "ner": (
        "masked", dict(stride=8, labels=TAGS), {},
        lambda i: dict(tokens=TEXTS[i].split(), tags=[DRAW.choice(TAGS) for _ in TEXTS[i].split()]),
    ),
    "question_answering": (
        "masked", dict(stride=4, question_length=3), dict(unanswerable=True),
        lambda i: dict(
            question="ab?", context=TEXTS[i],
            answers=dict(text=[TEXTS[i].strip()] * (i % 2), answer_start=[0] * (i % 2)),
        ),
    ),
}  # fmt: skip


def recipe(name, directory):
    family, objective, fields, row = TASKS[name]
    path = directory / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row(i)) + "\n" for i in range(N)))
    made = tiny.recipe(
        family,
        task=dict(name=name, **fields),
        data=dict(path=str(path), split="file", valid_path=str(path)),
        model=dict(vocab_size=281) | tiny.QUICK,
        train=dict(steps=1, length=24),
    )
    return made | {"objective": {"name": run_config.TASKS[name].objective} | objective}


@pytest.fixture(scope="module", params=TASKS)
def found(request, tmp_path_factory):
    """Return {(batch size, devices, buckets): Evaluation} of one model."""
    directory = tmp_path_factory.mktemp(request.param)
    config = run_config.from_dict(recipe(request.param, directory))
    results, params = {}, None
    with Inputs.open(config, directory / "run") as inputs:
        # What is generated has shapes of its own, and takes long to compile.
        cases = [(1, 1, ()), (7, 1, ()), (64, 8, ())]
        cases += [] if config.objective.generates else [(64, 1, ()), (7, 1, (20,))]
        for size, count, buckets in cases:
            sized = dataclasses.replace(
                config,
                eval=dataclasses.replace(config.eval, batch_size=size),
                train=dataclasses.replace(config.train, buckets=buckets),
            )
            read = Inputs(sized, inputs.workdir, inputs.tokenizer)
            mesh = sharding.make_mesh(config.sharding, jax.devices()[:count])
            program = make_program(sized, mesh)
            with program.mesh():
                params = params or tiny.drawn_params(program)
                placed = jax.device_put(
                    params, jax.tree.map(lambda leaf: leaf.sharding, program.abstract_params)
                )
                results[size, count, buckets] = evaluate_split(
                    program, placed, read, "valid", full=True
                )
    return request.param, results


def test_counts_are_identical_and_likelihoods_within_rounding(found):
    name, results = found
    first, show = results[1, 1, ()], run_config.TASKS[name]().show
    for key, other in results.items():
        values = [[a.value for a in e.answers] for e in (first, other)]
        if isinstance(values[0][0], float):
            np.testing.assert_allclose(*values, rtol=1e-5, atol=1e-5)
        else:
            assert list(map(show, values[0])) == list(map(show, values[1])), key
        scores = [[a.score for a in e.answers] for e in (first, other)]
        np.testing.assert_allclose(*scores, rtol=1e-5, atol=1e-5)
        assert other.scores.keys() == first.scores.keys()
        for score, value in other.scores.items():
            whatever = score.startswith(SUMS)
            close = pytest.approx(first.scores[score], rel=1e-5, abs=1e-5)
            assert value == (close if whatever else first.scores[score]), (name, key, score)


def test_each_example_is_counted_once(found):
    for evaluation in found[1].values():
        assert len(evaluation.examples) == len(evaluation.answers) == len(evaluation.golds) == N
        assert len({example["id"] for example in evaluation.examples}) == N
