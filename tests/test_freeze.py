"""Frozen parameters: no gradient, no state, no average, and not a bit of them changed."""

import jax
import numpy as np
import pytest
import tiny_runs as tiny
from numerics import EPS

from flaxlm import sharding, tree
from flaxlm.errors import ConfigError
from flaxlm.training import config as run_config
from flaxlm.training.checkpoint import Checkpointer
from flaxlm.training.step import check_trained, make_train_step

FREEZE = (r"^embed/", r"attention/(key|out)/")


def frozen(path):
    return path.startswith("embed/") or "attention/key/" in path or "attention/out/" in path


def config_of(mesh=(1, 1, 1), **sections):
    sizes = dict(zip(("data", "fsdp", "tensor"), mesh, strict=True))
    model = {"remat": "none"}  # it takes the compiler less time
    return run_config.from_dict(tiny.recipe("masked", sharding=sizes, model=model, **sections))


def program_on(mesh):
    config = config_of(
        mesh,
        optimizer=dict(freeze=FREEZE, weight_decay=0.5, no_decay=()),
        train=dict(ema_decay=0.5, microbatches=2),
    )
    devices = jax.devices()[: int(np.prod(mesh))]
    return make_train_step(config, sharding.make_mesh(config.sharding, devices), 4)


@pytest.fixture(scope="module")
def program():
    return program_on((1, 1, 1))


def bits(params):
    return {path: np.asarray(leaf).tobytes() for path, leaf in tree.flatten(params).items()}


def batch_of(program, step):
    host = tiny.random_batch(program.objective.batch_spec(16, 16), seed=step)
    return sharding.to_global(host, 0, 16, program.batch_sharding)


def steps(program, state, first, last):
    for step in range(first, last):
        state, metrics = program.step(state, batch_of(program, step))
    return state, metrics


def test_frozen_parameters_keep_every_bit_and_nothing_is_kept_for_them(program):
    with program.mesh():
        state = tiny.drawn_state(program)
        before = bits(state.params)
        state, _ = steps(program, state, 0, 2)
    after = bits(state.params)
    assert {path for path in after if after[path] == before[path]} == set(filter(frozen, after))
    trained = {path for path in after if not frozen(path)}
    assert tree.flatten(state.ema).keys() == trained
    averaged = bits(state.averaged())
    assert averaged.keys() == after.keys()
    assert {path for path in after if after[path] != averaged[path]} == trained
    moments = [path for path, leaf in tree.flatten(state.opt_state).items() if leaf.ndim]
    assert len(moments) == 2 * len(trained)
    assert {path.partition("mu/")[2] or path.partition("nu/")[2] for path in moments} == trained


def test_moments_of_what_is_trained_lie_where_it_lies():
    state = program_on((2, 2, 2)).abstract_state
    params = tree.flatten(state.params)
    for path, leaf in tree.flatten(state.opt_state).items():
        if leaf.ndim:
            name = path.partition("mu/")[2] or path.partition("nu/")[2]
            assert leaf.sharding == params[name].sharding, path
    split = [path for path, leaf in params.items() if any(leaf.sharding.spec)]
    assert any(map(frozen, split)) and not all(map(frozen, split))


def test_what_is_trained_has_the_gradients_of_the_whole_model(program):
    whole = tiny.gradients(program)
    some = tiny.gradients(program, trains=lambda path: not frozen(path))
    with program.mesh():
        state, batch, rng = tiny.drawn_state(program), batch_of(program, 0), jax.random.key(0)
        call = jax.jit(lambda p: (whole(p, batch, rng)[0], some(p, batch, rng)[0]))
        everything, trained = (tree.flatten(found) for found in call(state.params))
        _, metrics = program.step(state, batch)
    assert trained.keys() == {path for path in everything if not frozen(path)}
    largest = max(np.abs(g).max() for g in everything.values())
    for path, gradient in trained.items():
        bound = 1e-5 * np.abs(everything[path]).max() + 32 * EPS * largest  # see `numerics`
        np.testing.assert_allclose(gradient, everything[path], rtol=0, atol=bound)
    norm = np.sqrt(sum(np.square(np.asarray(g, np.float64)).sum() for g in trained.values()))
    assert float(metrics["grad_norm"]) == pytest.approx(norm, rel=1e-5)


def test_nothing_is_computed_for_what_is_frozen(program):
    """Two thirds of a step's products are gradients; below a head alone none of them is made."""
    params = program.abstract_params
    batch = {k: jax.ShapeDtypeStruct(*v) for k, v in program.objective.batch_spec(16, 16).items()}
    flops = []
    for trains in (lambda path: True, lambda path: path.startswith("heads/nsp")):
        grads = tiny.gradients(program, trains=trains)
        call = jax.jit(lambda p, b, grads=grads: grads(p, b, jax.random.key(0)))
        with program.mesh():
            flops.append(call.lower(params, batch).cost_analysis()["flops"])
    assert flops[1] < 0.45 * flops[0]


def test_a_resumed_run_equals_one_that_was_not(program, tmp_path):
    with program.mesh():
        whole, _ = steps(program, tiny.drawn_state(program), 0, 3)
        half, _ = steps(program, tiny.drawn_state(program), 0, 2)
        with Checkpointer(tmp_path) as saved:
            saved.save(2, half)
        state, _ = Checkpointer(tmp_path).restore(program.abstract_state)
        again, _ = steps(program, state, 2, 3)
    assert bits(again) == bits(whole)


@pytest.mark.parametrize(
    ("sections", "match"),
    [
        (dict(optimizer=dict(freeze=("layer/attention",))), r"freeze: .*nearest.*layers/attention"),
        (dict(optimizer=dict(freeze=("",))), "leaves no parameter to train"),
        (dict(optimizer=dict(freeze=("(",))), r"optimizer.freeze: '\(' is not a regex"),
        (dict(lora=dict(rank=2, targets=("qurey/kernel",))), r"lora.targets: .*query/kernel"),
        (dict(lora=dict(rank=2, train=("nothing",))), r"lora.train: 'nothing' matches no"),
        (dict(lora=dict(rank=-1)), "lora.rank=-1"),
        (dict(lora=dict(rank=2, targets=())), "lora.targets is empty"),
        (dict(lora=dict(rank=2), optimizer=dict(freeze=("lora", "^heads"))), "leaves no parameter"),
    ],
)  # fmt: skip
def test_patterns_that_cannot_be_meant_are_refused(sections, match):
    with pytest.raises(ConfigError, match=match):
        check_trained(config_of(**sections))
