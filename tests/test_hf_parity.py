"""Every architecture against `transformers`: logits, loss, gradients, a step, round trips, fields.

`make test` runs each with one head, `make parity` (FLAXLM_PARITY=all) with all it has.
"""

import copy
import dataclasses
import functools
import json
import os
import pathlib
import types

import hf_cases
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import safetensors.numpy
import torch
import transformers
from hf_cases import CASES
from numerics import EPS

from flaxlm import tree
from flaxlm.errors import ConfigError
from flaxlm.interop import config as hf_config
from flaxlm.interop.parts import tensors_of
from flaxlm.interop.pretrained import Directory, from_pretrained, save_pretrained
from flaxlm.models import real_shapes
from flaxlm.sharding import ShardingConfig

LOGITS = 2e-5  # of the largest
# Gradients of the mean loss are divided by this, alike on both sides: Adam's first step is lr · g /
# (|g| + eps), which near 0 multiplies rounding by lr / eps = 1000, so that has to be below 1e-8.
SCALE = 1 / 1024
ALL = os.environ.get("FLAXLM_PARITY") == "all"
PAIRS = [
    pytest.param((name, head), marks=pytest.mark.xdist_group(name), id=f"{name}-{head}")
    for name, case in CASES.items()
    for head in (case.classes if ALL else [case.one])
]
transformers.logging.set_verbosity_error()


def targets(case, batch, out):
    """Return {head: (targets, weights)}: a class for every logit vector of a real token or row."""
    rng = np.random.default_rng(1)
    made = {}
    for name, logits in out.items():
        real = batch["segment_ids"].astype(np.float32)
        if name == "question_answering":  # an index for each of two columns
            shape, weights = (len(real), 2), np.ones((len(real), 2), np.float32)
            made[name] = (rng.integers(0, 4, shape), weights)
        elif name in ("hidden", "pooled"):
            made[name] = (rng.normal(size=logits.shape).astype(np.float32), None)
        elif name == "discriminator":
            made[name] = (rng.integers(0, 2, real.shape), real)
        else:
            rows = logits.shape[:-1]
            weights = real if len(rows) == 2 else np.ones(rows, np.float32)
            made[name] = (rng.integers(0, logits.shape[-1], rows), weights)
    return made


def torch_loss(out, goals, real):
    total = 0.0
    for name, logits in out.items():
        goal, weights = (None if x is None else torch.from_numpy(x) for x in goals[name])
        if name in ("hidden", "pooled"):
            mask = real[..., None] if name == "hidden" else torch.ones(1)
            total = total + (logits * goal * mask).mean()
            continue
        if name == "discriminator":
            losses = torch.nn.functional.binary_cross_entropy_with_logits(
                logits, goal.float(), reduction="none"
            )
        else:
            if name == "question_answering":
                logits = logits.masked_fill(real[..., None] == 0, -1e9).transpose(1, 2)
            losses = torch.nn.functional.cross_entropy(
                logits.reshape(-1, logits.shape[-1]), goal.reshape(-1), reduction="none"
            ).reshape(weights.shape)
        total = total + (losses * weights).sum() / weights.sum()
    return total


def our_loss(out, goals, real):
    total = 0.0
    for name, (goal, weights) in goals.items():
        logits = out[name]
        if name in ("hidden", "pooled"):
            mask = real[..., None] if name == "hidden" else 1
            total += jnp.mean(logits * goal * mask)
            continue
        if name == "discriminator":
            losses = optax.sigmoid_binary_cross_entropy(logits, goal)
        else:
            if name == "question_answering":
                logits = jnp.swapaxes(jnp.where(real[..., None] == 0, -1e9, logits), 1, 2)
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, goal)
        total += jnp.sum(losses * weights) / jnp.sum(weights)
    return total


@functools.cache
def made(name, head, directory):
    """Return one case computed by both sides."""
    case = CASES[name]
    model = hf_cases.torch_model(case, head)
    path = pathlib.Path(directory) / f"{name}_{head}"
    model.save_pretrained(path)
    ours = from_pretrained(path)
    batch = hf_cases.batch(case, head)
    theirs = hf_cases.torch_outputs(model, case, head, batch)
    goals = targets(case, batch, theirs)
    loss = torch_loss(theirs, goals, torch.from_numpy(batch["segment_ids"]))
    (loss * SCALE).backward()
    module = ours.module

    def compute(params):
        out = module.apply({"params": params}, batch)
        return SCALE * our_loss(out, goals, batch["segment_ids"]), out

    (our, out), gradients = jax.jit(jax.value_and_grad(compute, has_aux=True))(ours.params)
    return types.SimpleNamespace(
        case=case, path=path, torch=model, ours=ours, batch=batch, module=module, theirs=theirs,
        out=out, loss=(loss.item(), float(our) / SCALE), gradients=gradients,
    )  # fmt: skip


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return str(tmp_path_factory.mktemp("hf"))


@pytest.fixture(params=PAIRS, scope="module")
def both(request, directory):
    return made(*request.param, directory)


@pytest.fixture
def seen(both, record_property):
    """Return a function that records a figure for the table of docs/hugging_face.md."""
    record_property("class", type(both.torch).__name__)

    def record(name, value):
        record_property(name, value if isinstance(value, str) else float(value))

    return record


def assert_close(ours, theirs, batch):
    """Compare outputs where there are tokens; return the difference as a share of the largest."""
    worst = 0.0
    for name, expected in theirs.items():
        expected, found = expected.detach().numpy(), np.asarray(ours[name])
        assert found.shape == expected.shape, name
        if found.shape[:2] == batch["segment_ids"].shape:
            real = batch["segment_ids"] > 0
            expected, found = expected[real], found[real]
        share = float(np.abs(found - expected).max() / np.abs(expected).max())
        assert share <= LOGITS, name
        worst = max(worst, share)
    return worst


def test_logits_and_loss(both, seen):
    seen("logits", assert_close(both.out, both.theirs, both.batch))
    theirs, ours = both.loss
    assert ours == pytest.approx(theirs, abs=1e-5)
    seen("loss", abs(ours - theirs))


@pytest.mark.parametrize("both", [p for p in PAIRS if CASES[p.values[0][0]].decoder], indirect=True)
def test_padding_on_the_left(both):
    head = next(h for h, c in both.case.classes.items() if c == both.ours.architecture)
    batch = hf_cases.batch(both.case, head, left=True)
    with torch.no_grad():
        theirs = hf_cases.torch_outputs(both.torch, both.case, head, batch)
    assert_close(both.ours(batch), theirs, batch)


def named(pretrained, values):
    """Return {name in the file: array} of a tree shaped as the parameters."""
    described = described_as(pretrained)
    shapes = real_shapes(pretrained.family, pretrained.config, pretrained.heads)
    flat = {path: np.asarray(leaf) for path, leaf in tree.flatten(values).items()}
    made = tensors_of(described, flat, shapes, np.dtype(np.float32))
    return {name: make() for name, _, _, make in made}


def described_as(pretrained):
    p = pretrained
    described = hf_config.write(p.config, p.family, p.heads, p.labels, p.architecture)
    fields = described.fields | {"tied": p.config.tied}
    return dataclasses.replace(described, fields=fields)


def norm(x):
    return float(np.linalg.norm(np.asarray(x, np.float64)))


def parameters(model, ours):
    """Return {name in the file: parameter}, each once, under the name that `ours` has."""
    renamed = {"lm_head.weight": "embed_out.weight"} if "NeoX" in type(model).__name__ else {}
    every = list(model.named_parameters(remove_duplicate=False))
    found = {renamed.get(name, name): parameter for name, parameter in every}
    found = {name: parameter for name, parameter in found.items() if name in ours}
    assert {id(p) for p in found.values()} == {id(p) for p in model.parameters()}
    return found


def test_gradients(both, seen):
    ours = named(both.ours, both.gradients)
    expected = {
        name: np.zeros(p.shape, np.float32) if p.grad is None else p.grad.numpy()
        for name, p in parameters(both.torch, ours).items()
    }
    whole = np.sqrt(sum(norm(g) ** 2 for g in expected.values()))
    assert whole > 0
    shares = {
        name: norm(ours[name] - g) / max(norm(g), 1e-3 * whole) for name, g in expected.items()
    }
    worst = max(shares, key=lambda name: shares[name])
    for name, g in expected.items():  # what cancels is rounded as what is added: see `numerics`
        assert norm(ours[name] - g) <= 1e-4 * norm(g) + 32 * EPS * whole, name
    seen("gradients", shares[worst])


def adamw_step(params, gradients):
    """Return params after a step of AdamW, all of them in one vector: one small program."""
    leaves, structure = jax.tree.flatten(params)
    p, g = (
        jnp.asarray(np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(x)]))
        for x in (params, gradients)
    )
    adamw = optax.adamw(1e-3, eps=1e-6, weight_decay=0.01)

    @jax.jit
    def step(p, g):
        return optax.apply_updates(p, adamw.update(g, adamw.init(p), p)[0])

    parts = np.split(np.asarray(step(p, g)), np.cumsum([leaf.size for leaf in leaves])[:-1])
    moved = [part.reshape(leaf.shape) for part, leaf in zip(parts, leaves, strict=True)]
    return jax.tree.unflatten(structure, moved)


def test_one_adamw_step(both, seen):
    model = copy.deepcopy(both.torch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, eps=1e-6, weight_decay=0.01)
    for parameter, before in zip(model.parameters(), both.torch.parameters(), strict=True):
        parameter.grad = before.grad
    optimizer.step()
    ours = named(both.ours, adamw_step(both.ours.params, both.gradients))
    worst = 0.0
    for name, parameter in parameters(model, ours).items():
        if parameter.grad is None:  # torch passes by what the loss does not depend on
            continue
        difference = float(np.abs(ours[name] - parameter.detach().numpy()).max())
        assert difference <= 1e-5, name
        worst = max(worst, difference)
    seen("step", worst)


def test_round_trips_are_bit_equal(both, seen, tmp_path):
    files = save_pretrained(tmp_path / "out", both.ours)
    assert [file.name for file in files] == ["model.safetensors"]
    theirs = safetensors.numpy.load_file(both.path / "model.safetensors")
    ours = safetensors.numpy.load_file(files[0])
    assert theirs.keys() == ours.keys()
    for name, tensor in theirs.items():
        assert tensor.dtype == ours[name].dtype
        assert np.array_equal(tensor, ours[name]), name
    # The export is whole for the other side, under the class that its config names,
    model, info = type(both.torch).from_pretrained(tmp_path / "out", output_loading_info=True)
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not info[kind], (kind, info[kind])
    before = both.torch.state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    # and the same to us.
    again = from_pretrained(tmp_path / "out")
    assert again.config == both.ours.config
    for path, leaf in tree.flatten(again.params).items():
        assert np.array_equal(leaf, tree.flatten(both.ours.params)[path]), path
    seen("round_trip", "bit-equal")


FLIPS = [
    pytest.param(name, key, marks=pytest.mark.xdist_group(name))
    for name, case in CASES.items()
    for key in case.flips
]


@pytest.mark.parametrize("name, key", FLIPS)
def test_each_field_decides_the_numbers(name, key, directory):
    """A changed field of config.json moves the logits, and to where `transformers` moves them."""
    case = CASES[name]
    before = made(name, case.one, directory)
    field, value = key.partition(":")[0], case.flips[key]
    path = pathlib.Path(directory) / f"{name}_{case.one}_{key.replace(':', '_')}"
    path.mkdir()
    raw = json.loads((before.path / "config.json").read_text()) | {field: value}
    if field == "feed_forward_proj":  # what was derived from it would decide
        raw = {k: v for k, v in raw.items() if k not in ("dense_act_fn", "is_gated_act")}
    (path / "config.json").write_text(json.dumps(raw))
    os.link(before.path / "model.safetensors", path / "model.safetensors")
    model = type(before.torch).from_pretrained(path, attn_implementation="eager").eval()
    with torch.no_grad():
        theirs = hf_cases.torch_outputs(model, case, case.one, before.batch)
    ours = from_pretrained(path)(before.batch)
    assert_close(ours, theirs, before.batch)
    real = before.batch["segment_ids"] > 0
    moved = []
    for head, logits in theirs.items():
        old = before.theirs[head].detach().numpy()
        change = np.abs(logits.numpy() - old)
        if change.shape[:2] == real.shape:
            change = change[real]
        moved.append(change.max() / np.abs(old).max())
    assert max(moved) > 10 * LOGITS


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_goes_out_as_it_came_in(dtype, tmp_path):
    model = hf_cases.torch_model(CASES["llama"], "lm").to(getattr(torch, dtype))
    model.save_pretrained(tmp_path / "in")
    ours = from_pretrained(tmp_path / "in", param_dtype=dtype)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(ours.params)} == {dtype}
    save_pretrained(tmp_path / "out", ours, limit=20_000)
    again = type(model).from_pretrained(tmp_path / "out", dtype="auto")
    assert (tmp_path / "out" / "model.safetensors.index.json").exists()
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name


def test_onto_a_mesh(directory):
    """Eight devices hold the same numbers, in shards, and compute the same."""
    case = made("gpt2", "lm", directory)
    spread = from_pretrained(case.path, sharding=ShardingConfig(data=1, fsdp=4, tensor=2))
    for path, leaf in tree.flatten(spread.params).items():
        assert np.array_equal(leaf, tree.flatten(case.ours.params)[path]), path
    table = tree.flatten(spread.params)["embed/token"]
    assert len(table.sharding.device_set) == 8
    assert table.addressable_shards[0].data.size == table.size // 8
    with pytest.raises(ConfigError, match="a batch of 3 does not divide over 4 devices"):
        spread(case.batch)
    out = spread({name: np.concatenate([rows, rows[:1]]) for name, rows in case.batch.items()})
    assert_close({name: rows[:3] for name, rows in out.items()}, case.theirs, case.batch)


def test_directory_lists_heads(directory):
    assert Directory(made("bert", "pretraining", directory).path).heads() == {"mlm": 0, "nsp": 0}
