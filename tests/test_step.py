"""The step is one function of (state, batch): whatever the mesh or the number of micro-batches."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_runs as tiny
from numerics import assert_same_gradients

from flaxlm import sharding, tree
from flaxlm.errors import ConfigError
from flaxlm.training import config as run_config
from flaxlm.training.step import make_train_step

MESHES = [(1, 1, 1), (8, 1, 1), (1, 8, 1), (1, 4, 2), (2, 2, 2)]


def program_on(family, mesh=(1, 1, 1), microbatches=1, **sections):
    train = {"microbatches": microbatches} | sections.pop("train", {})
    config = run_config.from_dict(
        tiny.recipe(
            family,
            train=train,
            sharding=dict(zip(("data", "fsdp", "tensor"), mesh, strict=True)),
            **sections,
        )
    )
    devices = jax.devices()[: int(np.prod(mesh))]
    return make_train_step(config, sharding.make_mesh(config.sharding, devices), 4)


def loss_and_gradients(family, mesh, microbatches):
    program = program_on(family, mesh, microbatches)
    spec = program.objective.batch_spec(16, 16)
    host = tiny.random_batch(spec, seed=1)
    with program.mesh():
        state = tiny.drawn_state(program)
        batch = jax.block_until_ready(sharding.to_global(host, 0, 16, program.batch_sharding))
        grads = jax.jit(tiny.gradients(program, microbatches))
        gradients, loss = grads(state.params, batch, jax.random.key(0))
        return float(loss), {p: np.asarray(g) for p, g in tree.flatten(gradients).items()}


@pytest.fixture(scope="module")
def reference():
    return {family: loss_and_gradients(family, (1, 1, 1), 1) for family in tiny.FAMILIES}


@pytest.mark.parametrize("family", ["causal", "masked", "spans"])
@pytest.mark.parametrize(
    ("mesh", "microbatches"), [(m, 1) for m in MESHES[1:]] + [(MESHES[0], 2), (MESHES[0], 4)]
)
def test_gradients_do_not_depend_on_mesh_or_microbatches(family, mesh, microbatches, reference):
    assert_same_gradients(loss_and_gradients(family, mesh, microbatches), reference[family])


def test_recurrent_gradients_do_not_depend_on_the_mesh(reference):
    assert_same_gradients(loss_and_gradients("recurrent", (2, 2, 2), 1), reference["recurrent"])


@pytest.mark.parametrize("mesh", [(2, 1, 1), (1, 2, 2)])
def test_meshes_and_microbatches_together(mesh, reference):
    assert_same_gradients(loss_and_gradients("masked", mesh, 4), reference["masked"])


def test_every_parameter_has_gradient(reference):
    for family, (_, gradients) in reference.items():
        for path, g in gradients.items():
            assert np.isfinite(g).all(), (family, path)
            # Softmax does not see a constant added to all scores of a query.
            if not path.endswith("key/bias"):
                assert np.abs(g).max() > 0, (family, path)


def run_steps(program, steps, seed=0, spoil=()):
    spec = program.objective.batch_spec(16, 16)
    history = []
    with program.mesh():
        state = tiny.drawn_state(program, seed)
        for step in range(steps):
            host = tiny.random_batch(spec, seed=step)
            if step in spoil:
                host["weights"] = host["weights"] * np.float32(np.nan)
            batch = sharding.to_global(host, 0, 16, program.batch_sharding)
            state, metrics = program.step(state, batch)
            history.append({k: float(v) for k, v in metrics.items()})
    return state, history


def test_initial_parameters_do_not_depend_on_the_mesh():
    digests = set()
    for mesh in ((1, 1, 1), (2, 2, 2)):
        program = program_on("masked", mesh)
        with program.mesh():
            digests.add(tree.digest_of(program.init(3).params))
    assert len(digests) == 1


def test_state_is_laid_out_as_planned_and_donated():
    program = program_on("causal", (2, 2, 2))
    with program.mesh():
        state = program.init(0)
        for path, leaf in tree.flatten(state).items():
            planned = tree.flatten(program.abstract_state)[path]
            assert leaf.sharding.is_equivalent_to(planned.sharding, leaf.ndim), path
        kernel = state.params["decoder"]["layers"]["mlp"]["up"]["kernel"]
        assert kernel.addressable_shards[0].data.size == kernel.size // 4  # fsdp x tensor
        spec = program.objective.batch_spec(16, 16)
        batch = sharding.to_global(tiny.random_batch(spec, 0), 0, 16, program.batch_sharding)
        program.step(state, batch)
        assert kernel.is_deleted()


def test_nonfinite_updates_are_skipped_and_counted():
    program = program_on("causal", train={"skip_nonfinite": 1})
    clean, _ = run_steps(program, 2)
    spoiled, history = run_steps(program, 3, spoil=(2,))
    assert np.isnan(history[2]["loss"])
    assert history[2]["skipped"] == 1
    assert tree.digests(clean.params) == tree.digests(spoiled.params)
    assert tree.digests(clean.opt_state) == tree.digests(spoiled.opt_state)
    _, history = run_steps(program, 4, spoil=(1,))
    assert [h["skipped"] for h in history] == [0, 1, 0, 0]


def test_past_the_limit_nothing_changes_any_more():
    program = program_on("causal", train={"skip_nonfinite": 0})
    stopped, history = run_steps(program, 5, spoil=(2,))
    before, _ = run_steps(program, 2)
    assert [h["skipped"] for h in history] == [0, 0, 1, 1, 1]
    assert tree.digests(stopped.params) == tree.digests(before.params)


def test_average_follows_its_recurrence():
    program = program_on("causal", train={"ema_decay": 0.9})
    program_plain = program_on("causal")
    averaged = jax.tree.map(np.asarray, run_steps(program_plain, 0)[0].params)
    for steps in range(1, 4):
        params = run_steps(program_plain, steps)[0].params
        averaged = jax.tree.map(lambda a, p: 0.9 * a + 0.1 * np.asarray(p), averaged, params)
    found = run_steps(program, 3)[0].averaged()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found, averaged)


def test_bfloat16_compute_follows_float32():
    losses = {}
    for dtype in ("float32", "bfloat16"):
        _, history = run_steps(program_on("causal", model={"dtype": dtype}), 3)
        losses[dtype] = [h["loss"] for h in history]
    np.testing.assert_allclose(losses["bfloat16"], losses["float32"], rtol=2e-2)
    assert losses["bfloat16"] != losses["float32"]


def test_batch_that_does_not_divide_is_refused():
    with pytest.raises(ConfigError, match="multiple of 16"):
        program_on("causal", (8, 1, 1), microbatches=2, train={"batch_size": 24})


def test_dropout_is_a_function_of_seed_and_step():
    model = {"residual_dropout": 0.3, "embed_dropout": 0.3}
    program = program_on("causal", model=model)
    one, two = (run_steps(program, 3)[1] for _ in range(2))
    assert one == two
    other = program_on("causal", model=model, seed=1)
    assert run_steps(other, 1)[1][0]["loss"] != one[0]["loss"]


def test_weights_come_from_the_batch_alone():
    for family in tiny.FAMILIES:
        program = program_on(family)
        batch = tiny.random_batch(program.objective.batch_spec(16, 16), 5)
        loss = jax.jit(lambda *args, p=program: p.objective.loss(p.model, *args, None, False)[0])
        with program.mesh():
            terms = loss(tiny.drawn_state(program).params, batch)
        expected = program.objective.weights(jax.tree.map(jnp.asarray, batch))
        assert expected.keys() == terms.keys() == program.objective.coefficients.keys()
        for name in expected:
            assert float(expected[name]) == pytest.approx(float(terms[name][1]))


def test_judging_gives_sums_and_answers_and_runs_the_model_once():
    task = dict(task=dict(name="classification"))
    recipe = tiny.recipe("masked") | task | dict(objective=dict(labels=("a", "b")))
    config = run_config.from_dict(recipe)
    mesh = sharding.make_mesh(config.sharding, jax.devices()[:1])
    program = make_train_step(config, mesh, 4)
    spec = program.objective.batch_spec(16, 16)
    batch = tiny.random_batch(spec, seed=1) | {"labels": np.arange(16, dtype=np.int32) % 2}
    with program.mesh():
        params = tiny.drawn_state(program).params
        functions = (program.sums, program.predict, program.judge)
        compiled = [function.lower(params, batch).compile() for function in functions]
        sums, outputs, both = [function(params, batch) for function in compiled]
    assert_close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)  # noqa: E731
    jax.tree.map(assert_close, (sums, outputs), both)
    alone, _, flops = [function.cost_analysis()["flops"] for function in compiled]
    assert flops < 1.01 * alone


def test_program_is_immutable():
    with pytest.raises(dataclasses.FrozenInstanceError):
        program_on("causal").config.seed = 1
