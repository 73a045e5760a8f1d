"""Fifty steps of our own train step, from a Hugging Face directory, follow torch's loss curve."""

import dataclasses
import functools
import math

import hf_cases
import jax
import numpy as np
import pytest
import safetensors.torch
import torch
from hf_cases import CASES

from flaxlm import from_dict, make_mesh, make_train_step, save_pretrained, tree
from flaxlm.training.config import hub_recipe
from flaxlm.training.start import init_source

STEPS, WARMUP, PEAK, DECAY = 50, 5, 2e-3, 0.01
B, L = 8, 16
CURVES = {
    "bert": ("pretraining", {"name": "masked_lm", "nsp": True}),
    "gpt2": ("lm", {"name": "causal_lm"}),
    "llama": ("lm", {"name": "causal_lm"}),
    "t5": ("lm", {"name": "span_corruption"}),
}


def batches(spec, seed=0):
    """Yield batches of a spec, whose targets are five of the ids: that can be learnt."""
    rng = np.random.default_rng(seed)
    while True:
        batch = {}
        for name, (shape, dtype) in spec.items():
            columns = np.indices(shape[:2])[1] if len(shape) > 1 else None
            if name in ("tokens", "encoder_tokens"):
                value = rng.integers(3, hf_cases.V, shape)
            elif name == "targets":
                value = rng.integers(3, 8, shape)
            elif name.endswith("segment_ids"):
                ends = shape[1] - rng.integers(0, 4, (shape[0], 1))
                value = columns < ends
            elif name == "target_positions":  # each once, before any padding
                value = np.argsort(rng.random((shape[0], 12)), axis=1)[:, : shape[1]]
            elif name.endswith("positions"):
                value = columns
            elif name == "weights":
                value = rng.random(shape) < 0.8
            elif name in ("labels", "token_types"):
                value = rng.integers(0, 2, shape)
            else:
                value = np.arange(shape[0])
            batch[name] = np.asarray(value, dtype)
        if "labels" not in batch:
            batch["weights"] *= batch["segment_ids"]
        yield batch


def learning_rate(step):
    """Linear warm-up whose first step is above zero, then a half cosine to zero."""
    if step < WARMUP:
        return PEAK * (step + 1) / WARMUP
    return PEAK * 0.5 * (1 + math.cos(math.pi * (step - WARMUP) / (STEPS - WARMUP)))


def torch_losses(model, case, head, spec):
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.0, eps=1e-6, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, learning_rate)
    curve, entropy = [], functools.partial(torch.nn.functional.cross_entropy, reduction="none")
    for _, batch in zip(range(STEPS), batches(spec), strict=False):
        out = hf_cases.torch_outputs(model, case, head, batch)
        weights = torch.from_numpy(batch["weights"])
        targets = torch.from_numpy(batch["targets"]).long()
        logits = out.get("lm", out.get("mlm"))
        if "target_positions" in batch:
            at = torch.from_numpy(batch["target_positions"]).long()
            logits = torch.take_along_dim(logits, at[..., None], dim=1)
        losses = entropy(logits.flatten(0, 1), targets.flatten()).reshape(weights.shape)
        loss = (losses * weights).sum() / weights.sum()
        if "nsp" in out:
            loss = loss + entropy(out["nsp"], torch.from_numpy(batch["labels"]).long()).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        curve.append(loss.item())
    return np.array(curve)


@pytest.mark.parametrize("name", CURVES)
def test_the_loss_curve_is_that_of_torch(name, tmp_path):
    head, objective = CURVES[name]
    case = CASES[name]
    model = hf_cases.torch_model(case, head, seed=3)
    with torch.no_grad():  # as weights that train well are: at 0.2 the first losses are above 20
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(0.3)
    model.save_pretrained(tmp_path)
    init = f"hf:{tmp_path}"
    fields = hub_recipe(init)["model"]
    config = from_dict(
        {
            "init": init,
            "model": {key: 0.0 for key in fields if key.endswith("_dropout")},
            "objective": objective,
            "optimizer": {
                "learning_rate": PEAK, "schedule": "cosine", "warmup_steps": WARMUP,
                "epsilon": 1e-6, "weight_decay": DECAY, "no_decay": (), "clip_norm": 0.0,
            },
            "train": {"steps": STEPS, "batch_size": B, "length": L},
        }
    )  # fmt: skip
    program = make_train_step(config, make_mesh(config.sharding, jax.devices()[:1]), STEPS)
    spec = config.objective.batch_spec(B, L)
    ours, said = [], []
    with program.mesh():
        state = program.init(0)
        params = init_source(program, "")(state.params, said.append)
        state = state.replace(params=params)
        assert "fresh: none" in said[0]
        for _, batch in zip(range(STEPS), batches(spec), strict=False):
            state, metrics = program.step(state, batch)
            ours.append(float(metrics["loss"]))
    theirs = torch_losses(model, case, head, spec)
    assert np.abs(np.array(ours) / theirs - 1).max() <= 1e-3
    assert theirs[-5:].mean() < 0.9 * theirs[:5].mean()
    assert tree.flatten(state.params).keys() == tree.flatten(params).keys()


def test_layer_decay_is_that_of_parameter_groups(tmp_path):
    """Five steps of AdamW, each layer of a BERT at its own learning rate, as torch has them."""
    case, decay, rate, steps = CASES["bert"], 0.5, 1e-2, 5
    model = hf_cases.torch_model(case, "classification", seed=5)
    model.save_pretrained(tmp_path / "in")
    init = f"hf:{tmp_path / 'in'}"
    fields = hub_recipe(init)["model"]
    config = from_dict(
        {
            "init": init,
            "model": {key: 0.0 for key in fields if key.endswith("_dropout")},
            "objective": {"name": "classification", "labels": ("a", "b", "c")},
            "task": {"name": "classification"},
            "optimizer": {
                "learning_rate": rate, "schedule": "constant", "epsilon": 1e-3, "no_decay": (),
                "weight_decay": 0.3, "clip_norm": 0.0, "layer_decay": decay,
            },
            "train": {"steps": steps, "batch_size": B, "length": L},
        }
    )  # fmt: skip
    layers = case.fields["num_hidden_layers"]
    groups = {}
    for name, parameter in model.named_parameters():
        distance = 0 if name.startswith(("classifier", "bert.pooler")) else layers + 1
        if ".layer." in name:
            distance = layers - int(name.split(".layer.")[1].split(".")[0])
        groups.setdefault(distance, []).append(parameter)
    assert sorted(groups) == [0, 1, 2, 3, 4]
    optimizer = torch.optim.AdamW(
        [{"params": group, "lr": rate * decay**distance} for distance, group in groups.items()],
        eps=1e-3,
        weight_decay=0.3,
    )
    program = make_train_step(config, make_mesh(config.sharding, jax.devices()[:1]), steps)
    spec = config.objective.batch_spec(B, L)
    with program.mesh():
        params = init_source(program, "")(program.init(0).params, lambda line: None)
        state = program.begin(params)
        for _, batch in zip(range(steps), batches(spec), strict=False):
            state, _ = program.step(state, batch)
            logits = hf_cases.torch_outputs(model, case, "classification", batch)["classification"]
            optimizer.zero_grad()
            labels = torch.from_numpy(batch["labels"]).long()
            torch.nn.functional.cross_entropy(logits, labels).backward()
            optimizer.step()
    ours = dataclasses.replace(program.trained(state.params, None), labels=("a", "b", "c"))
    save_pretrained(tmp_path / "out", ours)
    written = safetensors.torch.load_file(tmp_path / "out" / "model.safetensors")
    before = safetensors.torch.load_file(tmp_path / "in" / "model.safetensors")
    for name, parameter in model.state_dict().items():
        moved = (parameter - before[name]).abs().max()
        difference = (written[name] - parameter).abs().max()
        assert moved > 1e-4 and difference <= 1e-3 * moved, (name, difference, moved)
