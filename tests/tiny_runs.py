"""The one tiny size of every test of a run: three families, awkward vocabulary and head counts."""

import contextlib
import dataclasses
import functools

import jax
import numpy as np
import pytest

from flaxlm import sharding, tree
from flaxlm.train import train
from flaxlm.training import opened
from flaxlm.training.step import denominators_of, make_train_step, mean_gradients

VOCAB = 101  # a prime: divides over no mesh axis
SIZES = dict(vocab_size=VOCAB, width=24, num_layers=2, num_heads=3, head_dim=8, max_length=32)

# What compiles quickly, where neither layers nor norms are what is tested.
QUICK = dict(num_layers=1, scan_layers=False, remat="none", norm="rmsnorm")

FAMILIES = {
    "causal": dict(
        model=dict(name="decoder", vocab_multiple=1, **SIZES), objective=dict(name="causal_lm")
    ),
    "masked": dict(
        model=dict(name="encoder", token_types=2, vocab_multiple=8, **SIZES),
        objective=dict(name="masked_lm", nsp=True),
    ),
    "spans": dict(
        model=dict(name="encoder_decoder", positions="relative", vocab_multiple=1, **SIZES),
        objective=dict(name="span_corruption"),
    ),
    "recurrent": dict(
        model=dict(name="recurrent", vocab_size=VOCAB, width=24, num_layers=2),
        objective=dict(name="causal_lm"),
    ),
}


def recipe(family: str, **sections) -> dict:
    """Return a tiny recipe; sections are merged one level deep."""
    base = dict(
        tokenizer=dict(kind="byte", sentinels=20),
        optimizer=dict(learning_rate=1e-2, schedule="constant", clip_norm=1.0),
        train=dict(steps=4, batch_size=16, length=16, log_every=1),
        **FAMILIES[family],
    )
    merged = {k: dict(v) for k, v in base.items()}
    for name, value in sections.items():
        if isinstance(value, dict):
            merged[name] = merged.get(name, {}) | value
        else:
            merged[name] = value
    return merged


@contextlib.contextmanager
def one_device():
    """Compile for one device, in half the time, wherever a config asks for no number of them."""
    make = sharding.make_mesh

    def mesh(config, devices=None):
        asked = max(config.data, 1) * max(config.fsdp, 1) * max(config.tensor, 1)
        return make(config, jax.devices()[:asked] if devices is None else devices)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding, "make_mesh", mesh)
        yield


@contextlib.contextmanager
def shared_programs():
    """Trace and compile once for all runs that compute the same; yield `train`.

    What a schedule without decay computes does not depend on the last step.
    """
    kept = {}

    def shared(make):
        def get(config, mesh, *arguments):
            parts = dataclasses.asdict(config)
            for name in (
                "raw",
                "init",
                "init_weights",
                "data",
                "tokenizer",
                "task",
                "checkpoint",
                "eval",
            ):
                del parts[name]
            key = [make, mesh, parts, config.objective, *arguments]
            if config.optimizer.schedule == "constant" and make is make_train_step:
                del parts["train"]["steps"], key[-1]
            key = repr(key)
            if key not in kept:
                kept[key] = make(config, mesh, *arguments)
            return dataclasses.replace(kept[key], config=config)

        return get

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(opened, "make_program", shared(opened.make_program))
        yield functools.partial(train, make=shared(make_train_step))


def random_batch(spec: dict, seed: int, vocab: int = VOCAB) -> dict:
    """Return a batch of a spec's shapes: random ids, two packed segments, some padding."""
    rng = np.random.default_rng(seed)
    batch = {}
    for name, (shape, dtype) in spec.items():
        columns = np.indices(shape[:2])[1] if len(shape) > 1 else None
        if name.endswith("segment_ids"):
            ends = shape[1] - rng.integers(0, 4, (shape[0], 1))
            value = np.where(columns < shape[1] // 2, 1, 2) * (columns < ends)
        elif name.endswith("positions") and name != "target_positions":
            value = columns % (shape[1] // 2)
        elif name == "target_positions":
            value = np.sort(rng.integers(0, 16, shape), axis=1)
        elif name == "weights":
            value = rng.random(shape) < 0.7
        elif name in ("labels", "token_types", "prefix_mask"):
            value = rng.integers(0, 2, shape)
        elif name == "example_ids":
            value = np.arange(shape[0])
        else:
            value = rng.integers(0, vocab, shape)
        batch[name] = np.asarray(value, dtype)
    return batch


def gradients(program, microbatches=1, trains=lambda path: True):
    """Return f(params, batch, rng) -> (gradients, loss) of what `trains` says is trained."""
    grads = mean_gradients(program.objective, program.model, microbatches, lambda x: x)

    def call(params, batch, rng):
        denominators = denominators_of(program.objective, batch)
        (loss, _), found = grads(*tree.split(params, trains), batch, denominators, rng)
        return found, loss

    return call


def drawn_params(program, seed=0, std=0.05):
    """Return random parameters, numpy; nothing is compiled for them."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        noise = std * rng.normal(size=leaf.shape)
        return (noise + path.endswith("norm/scale")).astype(leaf.dtype)

    return tree.map_paths(draw, program.abstract_params)


def drawn_state(program, seed=0):
    """Return a state at step 0 with random parameters; nothing is compiled for it."""
    params = tree.flatten(drawn_params(program, seed))

    def place(path, leaf):
        section, _, name = path.partition("/")
        number = params[name] if section in ("params", "ema") else np.zeros(leaf.shape, leaf.dtype)
        return jax.device_put(number, leaf.sharding)

    # Copies under way and collectives share the threads of virtual devices.
    return jax.block_until_ready(tree.map_paths(place, program.abstract_state))
