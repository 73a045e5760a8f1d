"""In-batch negatives against torch, the same on any mesh; which pairs are trained on."""

import json

import jax
import numpy as np
import pytest
import tiny_runs as tiny
import torch
from numerics import assert_same_gradients
from test_objective_models import built, results

from flaxlm import sharding, tree
from flaxlm.data.sources import DataConfig
from flaxlm.errors import ConfigError, DataError
from flaxlm.objectives import InBatch
from flaxlm.tasks import TASKS
from flaxlm.tasks.task import Answer
from flaxlm.training import config as run_config
from flaxlm.training.step import make_train_step


def torch_vectors(hidden, segments, pooling):
    """Return unit vectors [R, D] of states [R, L, D], a row at a time."""
    rows = []
    for states, real in zip(torch.tensor(np.array(hidden)), segments > 0, strict=True):
        states = states[torch.tensor(real)]
        rows.append({"mean": states.mean(0), "cls": states[0], "last": states[-1]}[pooling])
    return torch.nn.functional.normalize(torch.stack(rows))


@pytest.mark.parametrize("name", ["encoder", "decoder", "recurrent"])
@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_the_loss_is_torchs_cross_entropy_both_ways(name, pooling):
    objective, model, params, batch = built("in_batch", name)
    hidden = results("in_batch", name)[2]["hidden"]
    real = batch["example_ids"] >= 0
    both = batch["segment_ids"].reshape(-1, batch["segment_ids"].shape[-1])
    kept = np.repeat(real, 2)
    x = torch_vectors(hidden[kept], both[kept], pooling)
    assert x.shape[0] == 22  # eleven pairs, and two of filling that are nobody's candidates
    cosines = x[0::2] @ x[1::2].T
    own, of = torch.arange(11), torch.tensor(batch["labels"][real])
    assert 0 < of.sum() < 11  # pairs of label 0 are candidates alone
    nats = sum(
        torch.nn.functional.cross_entropy(logits / 0.1, own, reduction="none")
        for logits in (cosines, cosines.T)
    )
    objective = InBatch(pooling=pooling, temperature=0.1, model=name)
    (total, weight), *_ = objective.loss(model, params, batch, None, False)[0].values()
    assert float(weight) == of.sum() == float(objective.weights(batch)["loss"])
    assert float(total) == pytest.approx(float((nats / 2 * of).sum()), rel=1e-4)
    found = objective.predict(model, params, batch)["values"]
    np.testing.assert_allclose(found[real], cosines.diagonal(), atol=1e-5)


def config_of(mesh=(1, 1, 1), **train):
    recipe = tiny.recipe(
        "masked",
        sharding=dict(zip(("data", "fsdp", "tensor"), mesh, strict=True)),
        train={"length": 8} | train,
        model=tiny.FAMILIES["masked"]["model"] | {"num_layers": 1},
    )
    recipe |= {"objective": {"name": "in_batch"}, "task": {"name": "similarity"}}
    return run_config.from_dict(recipe)


def pairs(size=16, length=8):
    rng = np.random.default_rng(0)
    lengths = rng.integers(3, length, (size, 2, 1))
    return {
        "tokens": rng.integers(5, tiny.VOCAB, (size, 2, length)).astype(np.int32),
        "segment_ids": (np.arange(length) < lengths).astype(np.int32),
        "token_types": np.zeros((size, 2, length), np.int32),
        "labels": np.ones(size, np.int32),
        "example_ids": np.arange(size, dtype=np.int32),
    }


def loss_and_gradients(mesh):
    config = config_of(mesh)
    devices = jax.devices()[: int(np.prod(mesh))]
    program = make_train_step(config, sharding.make_mesh(config.sharding, devices), 4)
    with program.mesh():
        rng = np.random.default_rng(1)
        draw = lambda a: jax.device_put(0.2 * rng.normal(size=a.shape).astype(a.dtype), a.sharding)  # noqa: E731
        params = jax.tree.map(draw, program.abstract_params)
        batch = sharding.to_global(pairs(), 0, 16, program.batch_sharding)
        gradients, loss = jax.jit(tiny.gradients(program))(params, batch, jax.random.key(0))
        return float(loss), {p: np.asarray(g) for p, g in tree.flatten(gradients).items()}


def test_every_device_chooses_among_the_whole_global_batch():
    assert_same_gradients(loss_and_gradients((2, 2, 2)), loss_and_gradients((1, 1, 1)))


def test_accumulation_is_refused_by_name():
    with pytest.raises(ConfigError, match=r"microbatches=2: .*'in_batch' needs its whole batch"):
        config_of(microbatches=2)


@pytest.mark.parametrize("fields", [{"temperature": 0.0}, {"pooling": "max"}])
def test_impossible_settings_are_refused(fields):
    with pytest.raises(ConfigError, match=f"objective.{next(iter(fields))}"):
        InBatch(**fields)


# --- pairs


def data_of(folder, **files):
    for split, rows in files.items():
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    paths = {f"{split}_path": str(folder / f"{split}.jsonl") for split in files}
    return DataConfig(path=paths.pop("train_path"), split="file", **paths)


SCORED = [{"sentence1": f"a {i}", "sentence2": f"b {i}", "score": i / 2} for i in (0, 8, 10, 7, 3)]


def test_scored_pairs_are_trained_on_from_the_threshold_and_all_are_judged(tmp_path):
    data = data_of(tmp_path, train=SCORED, valid=SCORED)
    task = TASKS["similarity"]()
    with pytest.warns(UserWarning, match="2 of 5 training pairs have a score of .*=4.0 or more"):
        found = task.examples(data, "train")
    assert [(e["text"], e["text_pair"], e["score"], e["label"]) for e in found] == [
        ("a 8", "b 8", 4.0, 1), ("a 10", "b 10", 5.0, 1)
    ]  # fmt: skip
    found = task.examples(data, "valid")
    assert [e["label"] for e in found] == [0, 1, 1, 0, 0]
    assert task.golds(found) == [0.0, 4.0, 5.0, 3.5, 1.5]
    with pytest.raises(DataError, match=r"none of the 5 .*threshold=6.0 or more; lower it, or"):
        TASKS["similarity"](threshold=6.0).examples(data, "train")


def test_given_pairs_need_no_scores_in_training_and_have_them_to_be_judged(tmp_path):
    bare = [{key: row[key] for key in ("sentence1", "sentence2")} for row in SCORED]
    data = data_of(tmp_path, train=bare, valid=bare, test=bare)
    task = TASKS["similarity"](pairs="given")
    assert [(e["label"], e["score"]) for e in task.examples(data, "train")] == [(1, None)] * 5
    with pytest.raises(DataError, match=r"valid.jsonl, line 1: there is no column 'score'"):
        task.examples(data, "valid")
    found = task.examples(data, "test")
    assert [(e["label"], e["score"]) for e in found] == [(None, None)] * 5
    with pytest.raises(DataError, match=r"train.jsonl, line 1: there is no column 'score'"):
        TASKS["similarity"]().examples(data, "train")


def test_cosines_are_judged_by_their_order():
    task = TASKS["similarity"]()
    golds = [0.0, 1.0, 2.0, 5.0]
    scores = task.metrics([Answer(v) for v in (-0.1, 0.2, 0.25, 0.26)], golds)
    assert scores["spearman"] == 1.0 and scores.keys() == {"spearman", "pearson"}
    assert task.mistake(Answer(0.9), 5.0) < task.mistake(Answer(0.9), 1.0)
