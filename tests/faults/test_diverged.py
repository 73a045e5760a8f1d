"""Diverged is diverged: nothing is saved while updates are skipped, and what is good is named."""

import dataclasses
import json
import random
import signal
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_runs as tiny
from command_line import CommandLine

from flaxlm import train as loop
from flaxlm import tree
from flaxlm.commands import inspect
from flaxlm.errors import Diverged, Preempted
from flaxlm.processes.signals import signals
from flaxlm.training import checkpoint
from flaxlm.training import config as run_config
from flaxlm.training.checkpoint import Checkpointer
from flaxlm.training.step import make_train_step

pytestmark = pytest.mark.usefixtures("one_device")
DIGESTS = ("step", "digest/params", "digest/opt_state")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    draw = random.Random(0)
    path = tmp_path_factory.mktemp("corpus") / "text.txt"
    path.write_text("".join(f"Row {i} has {draw.random()}, or so.\n\n" for i in range(300)))
    return str(path)


@pytest.fixture(scope="module")
def start(corpus):
    """Return a function that trains, with updates that are not finite at the steps `bad`."""
    made = {}

    def train(workdir, bad=(), *, broken=(), signalled=0, **sections):
        recipe = tiny.recipe(
            "recurrent",
            model=dict(vocab_size=281, num_layers=1),
            data=dict(path=corpus, document="paragraph", valid_fraction=0.1),
            train=dict(steps=8, skip_nonfinite=2) | sections.pop("train", {}),
            checkpoint=dict(every=2, keep=9) | sections.pop("checkpoint", {}),
            eval=dict(every=4) | sections.pop("eval", {}),
        )
        config = run_config.from_dict(recipe)

        def make(config, mesh, total):
            if not made:
                made["program"] = make_train_step(config, mesh, total)
            program = dataclasses.replace(made["program"], config=config)

            def update(seed, state, batch):
                step = int(state.step) + 1
                if step == signalled:
                    signal.raise_signal(signal.SIGTERM)
                    while not signals.asked:  # a thread takes note of it
                        time.sleep(0.01)
                if step in bad:  # what `step.py` makes of a loss that is not finite
                    skipped = state.skipped + 1
                    state = state.replace(step=state.step + 1, skipped=skipped)
                    return state, {"loss": jnp.float32(np.nan), "skipped": skipped + 0}
                state, metrics = program.update(seed, state, batch)
                if step in broken:
                    params = jax.tree.map(lambda x: x * np.float32(np.nan), state.params)
                    state = state.replace(params=params)
                return state, metrics

            return dataclasses.replace(program, update=update)

        return config, loop.train(config, workdir, make=make)

    return train


def steps(workdir):
    return Checkpointer(workdir, read_only=True).steps()


def rows(workdir, key):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [row["step"] for row in map(json.loads, lines) if key in row]


def damage(workdir, step):
    files = sorted((workdir / "checkpoints" / f"step_{step:08d}" / "state").rglob("*"))
    largest = max((p for p in files if p.is_file()), key=lambda p: p.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.write_bytes(data)


def test_saves_and_evaluations_wait_until_updates_are_taken_again(start, tmp_path):
    _, result = start(tmp_path, bad=(4, 5), checkpoint=dict(every=4))
    assert steps(tmp_path) == [6, 8] and rows(tmp_path, "valid/loss") == [6, 8]
    assert result["step"] == 8 and result["train/loss"] == result["train/loss"]
    records = Checkpointer(tmp_path, read_only=True).readable()
    assert [record.metrics["skipped"] for record in records.values()] == [0, 0]


@pytest.mark.parametrize("lag", [0, 1])
def test_the_last_good_step_is_from_before_the_first_skipped_update(lag, start, tmp_path):
    bad = range(5 + lag, 99)
    with pytest.raises(Diverged, match=rf"not finite at step {7 + lag} .*checkpoint: step 4$"):
        start(tmp_path, bad=bad, checkpoint=dict(keep=1))
    assert steps(tmp_path)[-1] == 4
    with pytest.raises(Diverged, match=rf"not finite at step {7 + lag} .*checkpoint: step 4$"):
        start(tmp_path, bad=bad, checkpoint=dict(keep=1))


def test_where_nothing_was_saved_before_that_is_said(start, tmp_path):
    with pytest.raises(Diverged, match=r"at step 3 .*; no checkpoint was saved yet$"):
        start(tmp_path, bad=range(1, 99), checkpoint=dict(every=1))
    assert steps(tmp_path) == []


def test_a_damaged_step_is_not_called_good(start, tmp_path, monkeypatch):
    start(tmp_path, train=dict(steps=4, skip_nonfinite=2))
    saved = Checkpointer(tmp_path, read_only=True)
    leaves = saved.manifest(4).leaves.items()
    state = {path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for path, leaf in leaves}
    monkeypatch.setattr(checkpoint, "PART", 10_000)  # several of them
    for good, damaged in ((4, 4), (2, 2), (None, None)):
        assert saved.last_good(tree.unflatten(state)) == good
        if damaged:
            damage(tmp_path, damaged)


def test_a_save_under_way_is_waited_for(start, tmp_path, monkeypatch):
    commit = Checkpointer.commit
    monkeypatch.setattr(Checkpointer, "commit", lambda *a: (loop.time.sleep(0.5), commit(*a))[1])
    with pytest.raises(Diverged, match=r"last good checkpoint: step 2$"):
        start(tmp_path, bad=range(3, 99), eval=dict(every=0))


def test_a_run_that_ends_in_skipped_updates_says_so_and_keeps_the_good_step(start, tmp_path):
    with pytest.warns(UserWarning, match="the last 1 updates were skipped"):
        start(tmp_path, bad=(8,), checkpoint=dict(keep=1, keep_best=0))
    assert steps(tmp_path) == [6, 8]
    # Gone on with into the blow-up, what was saved while skipping is not called good.
    with pytest.raises(Diverged, match=r"at step 10 .*last good checkpoint: step 6$"):
        start(tmp_path, bad=range(8, 99), train=dict(steps=12, skip_nonfinite=2))
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["train/loss"] != result["train/loss"] and result["step"] == 8


def test_parameters_that_are_not_finite_end_the_run_though_the_loss_is(start, tmp_path):
    words = r"parameters not finite at step 4, after a finite gradient; last good .*: step 2$"
    with pytest.raises(Diverged, match=words):
        start(tmp_path, broken=(4,))
    assert steps(tmp_path) == [2]
    with pytest.raises(Diverged, match=words):  # at the last step too
        start(tmp_path, broken=(4,), train=dict(steps=4), checkpoint=dict(every=0))
    assert steps(tmp_path) == [2] and not (tmp_path / "result.json").exists()


def test_a_checkpoint_of_an_earlier_version_that_holds_nan_is_not_called_good(
    start, tmp_path, monkeypatch
):
    with monkeypatch.context() as patch, pytest.raises(Diverged):
        patch.setattr("flaxlm.tree.finite", lambda tree: True)
        start(tmp_path, bad=range(3, 99), broken=(2,))
    assert steps(tmp_path) == [2]
    with pytest.raises(Diverged, match=r"; no checkpoint is good$"):
        start(tmp_path, bad=range(3, 99))


def test_a_sigterm_while_skipping_saves_nothing_and_says_so(start, tmp_path, capfd):
    words = r"asked to stop at step 5; nothing is saved .*goes on from step 4$"
    with pytest.raises(Preempted, match=words):
        start(tmp_path / "run", bad=(5, 6), signalled=5)
    assert steps(tmp_path / "run") == [2, 4]
    config, _ = start(tmp_path / "run", bad=(5, 6))
    start(tmp_path / "whole", bad=(5, 6))
    mine, whole = (inspect.inspect(config, tmp_path / p, "latest") for p in ("run", "whole"))
    assert {n: mine[n] for n in DIGESTS} == {n: whole[n] for n in DIGESTS}
    texts = [(tmp_path / p / "result.json").read_bytes() for p in ("run", "whole")]
    assert texts[0] == texts[1]


def test_a_real_blow_up_leaves_only_finite_checkpoints(tmp_path, corpus):
    recipe = tiny.recipe(
        "recurrent",
        model=dict(vocab_size=281, num_layers=1),
        data=dict(path=corpus, document="paragraph", valid_fraction=0.1),
        train=dict(steps=30, skip_nonfinite=2),
        optimizer=dict(name="sgd", learning_rate=1e38, clip_norm=0.0),
        checkpoint=dict(every=1),
    )
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    line = CommandLine(tmp_path, cwd=tmp_path, seconds=120)
    done = line("train", "--config=recipe.json", "--workdir=run")
    assert done.code == 76 and len(done.errors) == 1 and " not finite at step" in done.errors[0]
    saved = Checkpointer(tmp_path / "run", read_only=True)
    for step in saved.steps():
        params = saved.restore_params(step)[0]
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))
    good = f"step {saved.latest()}" if saved.steps() else "no checkpoint was saved yet"
    assert done.errors[0].endswith(good)
