"""Which checkpoint a reader takes: the best one where the run stops early."""

import json

import jax.numpy as jnp
import pytest

from flaxlm.errors import ConfigError, MissingInput
from flaxlm.training import config as run_config
from flaxlm.training.checkpoint import Checkpointer
from flaxlm.training.reading import find
from flaxlm.training.store import CheckpointConfig

SCORES = {2: (0.9, 0.5), 4: (0.8, 0.9), 6: (0.7, 0.6)}  # step: (loss, accuracy)


def run_of(directory, scores=SCORES, **eval_):
    (directory / "config.json").write_text(json.dumps({"eval": eval_}))
    with Checkpointer(directory, CheckpointConfig(keep=9)) as saved:
        for step, values in scores.items():
            named = zip(("valid/loss", "valid/accuracy"), values, strict=False)
            saved.save(step, {"params": jnp.ones(2) * step}, metrics=dict(named))
    return directory


@pytest.mark.parametrize(
    ("eval_", "checkpoint", "step", "why"),
    [
        (dict(), "", 6, "the latest"),
        (dict(patience=2), "", 6, "the best, valid/loss 0.7000"),
        (dict(patience=2, metric="accuracy", mode="max"), "", 4, "the best, valid/accuracy 0.9000"),
        (dict(metric="accuracy", mode="max"), "best", 4, "the best, valid/accuracy 0.9000"),
        (dict(metric="loss", mode="min"), "best", 6, "the best, valid/loss 0.7000"),
        (dict(patience=2), "latest", 6, "the latest"),
        (dict(patience=2), "4", 4, "as asked"),
    ],
)
def test_the_best_is_read_where_a_run_stops_early(eval_, checkpoint, step, why, tmp_path):
    source = find(run_of(tmp_path, **eval_), checkpoint)
    assert (source.step, source.why) == (step, why)


def test_without_a_score_the_latest_is_read_and_best_is_refused(tmp_path):
    run = run_of(tmp_path, {3: ()}, patience=2)
    assert find(run, "").step == 3
    with pytest.raises(MissingInput, match="evaluation score"):
        find(run, "best")
    with pytest.raises(ConfigError, match="choose latest, best or 3"):
        find(run, "4")


def test_early_stopping_needs_a_best_checkpoint_to_be_kept():
    with pytest.raises(ConfigError, match="keep_best=0 keeps none"):
        run_config.from_dict(
            dict(train=dict(steps=1), eval=dict(patience=1), checkpoint=dict(keep_best=0))
        )


def test_a_run_that_kept_the_worst_is_read_with_a_warning(tmp_path):
    run = run_of(tmp_path, metric="accuracy", mode="min")
    with pytest.warns(UserWarning, match="kept the worst by eval.metric='accuracy'"):
        source = find(run, "best")
    assert (source.step, source.why) == (4, "the best, valid/accuracy 0.9000")
