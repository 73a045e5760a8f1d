"""Seeds are the runs that they would be alone, compiled once; and comparisons are paired."""

import json
import random

import numpy as np
import pytest
import tiny_runs as tiny

from flaxlm import train
from flaxlm.commands import train as command
from flaxlm.errors import ConfigError, DataError, MissingInput
from flaxlm.evaluation import compare
from flaxlm.training import config as run_config
from flaxlm.training.checkpoint import Checkpointer
from flaxlm.training.step import make_train_step

pytestmark = pytest.mark.usefixtures("one_device")


def recipe(directory, **changes):
    draw = random.Random(0)
    for name, count in (("train", 64), ("valid", 24)):
        rows = [
            {"text": f"{'sun' if i % 2 else 'fog'} {draw.random()}", "label": "ab"[i % 2]}
            for i in range(count)
        ]
        path = directory / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    base = tiny.recipe(
        "causal",
        task=dict(name="classification"),
        objective=dict(name="classification", labels=("a", "b")),
        model=dict(vocab_size=281, residual_dropout=0.1) | tiny.QUICK,
        data=dict(
            path=str(directory / "train.jsonl"),
            split="file",
            valid_path=str(directory / "valid.jsonl"),
        ),
        train=dict(steps=6, batch_size=16, length=16),
        optimizer=dict(learning_rate=4e-3),
        checkpoint=dict(every=3),
    )
    return run_config.from_dict(base | changes)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return (directory, result, programs made) of a run over three seeds."""
    directory = tmp_path_factory.mktemp("seeds")
    made = []

    def make(*arguments):
        made.append(make_train_step(*arguments))
        return made[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "make_train_step", make)
        result = command.train_seeds(recipe(directory, seeds=3, seed=5), directory / "run")
    return directory, result, made


def params(run):
    return Checkpointer(run, read_only=True).restore_params()[0]


def test_a_seed_is_the_run_that_it_would_be_alone(trained):
    directory, _, _ = trained
    train.train(recipe(directory, seed=6), directory / "alone")
    ours, alone = (params(directory / name) for name in ("run/seed_6", "alone"))
    different = params(directory / "run" / "seed_7")
    for name in ("kernel", "bias"):
        a, b, c = (p["heads"]["classification"][name] for p in (ours, alone, different))
        assert np.array_equal(a, b) and not np.array_equal(a, c)


def test_seeds_share_one_compilation(trained):
    (program,) = trained[2]
    assert program.update._cache_size() == 1


def test_the_result_is_mean_spread_and_best_of_the_seeds(trained):
    directory, result, _ = trained
    alone = [
        json.loads((directory / f"run/seed_{s}/evaluations/classification-valid/scores.json")
                   .read_text()) for s in (5, 6, 7)
    ]  # fmt: skip
    values = [scores["accuracy"] for scores in alone]
    assert result["accuracy_mean"] == pytest.approx(np.mean(values))
    assert result["accuracy_sd"] == pytest.approx(np.std(values, ddof=1))
    assert result["accuracy_best"] == max(values)
    assert result["best_seed"] == f"seed_{5 + values.index(max(values))}"
    assert result.items() <= json.loads((directory / "run" / "result.json").read_text()).items()


def test_started_again_it_goes_on_and_more_seeds_can_be_added(trained, capfd):
    directory, result, _ = trained
    again = command.train_seeds(recipe(directory, seeds=3, seed=5), directory / "run")
    assert again == result
    assert capfd.readouterr().err.count("nothing to do: step 6 of 6") == 3


def test_a_run_compared_with_itself_is_no_better(trained):
    directory, _, _ = trained
    found = compare.summary(
        directory / "run", "classification-valid", "accuracy", "max", str(directory / "run")
    )
    assert found["baseline/right"] == found["baseline/accuracy"] == 0
    assert found["baseline/right_p"] == found["baseline/accuracy_p"] == 1


def test_a_baseline_without_the_evaluation_is_refused_before_training(trained, tmp_path):
    with pytest.raises(MissingInput, match=r"nothing can be compared.*run `evaluate` on"):
        train.train(recipe(tmp_path, baseline=str(tmp_path / "none")), tmp_path / "run")
    assert not list(tmp_path.glob("run/checkpoints/step_*"))


def test_seeds_of_pre_training_are_refused(tmp_path):
    config = run_config.from_dict(tiny.recipe("causal", model=dict(vocab_size=281), seeds=2))
    with pytest.raises(ConfigError, match="start one run a seed"):
        command.train_seeds(config, tmp_path)


def write(directory, mistakes):
    directory.mkdir(parents=True)
    rows = ({"id": i, "mistake": m} for i, m in mistakes.items())
    (directory / "predictions.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return directory


def test_two_runs_are_compared_example_by_example_whatever_their_order(tmp_path):
    rng = np.random.default_rng(0)
    ids = [f"f:{i}" for i in range(300)]
    ours = {i: float(rng.random() < 0.2) for i in ids}
    theirs = {i: float(rng.random() < 0.4) for i in reversed(ids)}
    a, b = write(tmp_path / "a", ours), write(tmp_path / "b", theirs)
    found = compare.on_examples([a], [b])
    share = sum(theirs.values()) / 300 - sum(ours.values()) / 300
    assert found["right"] == pytest.approx(share) == pytest.approx(-found["mistake"])
    assert found["only_ours"] == sum(ours[i] < theirs[i] for i in ids)
    assert found["only_theirs"] == sum(ours[i] > theirs[i] for i in ids)
    assert found["right_low"] < share < found["right_high"] and found["right_p"] < 0.01
    # Pairing matters: the same answers against other examples are another comparison.
    shuffled = dict(zip(ids, theirs.values(), strict=True))
    other = compare.on_examples([a], [write(tmp_path / "c", shuffled)])
    assert other["only_ours"] != found["only_ours"]


def test_runs_on_other_examples_are_not_compared(tmp_path):
    a, b = write(tmp_path / "a", {"x": 0.0, "y": 1.0}), write(tmp_path / "b", {"x": 0.0, "z": 1.0})
    with pytest.raises(DataError, match=r"different examples, [yz] among 2"):
        compare.on_examples([a], [b])
    with pytest.raises(DataError, match="no right answer"):
        compare.on_examples([a], [write(tmp_path / "c", {"x": None, "y": None})])
