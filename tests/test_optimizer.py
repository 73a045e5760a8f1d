"""Schedules against closed forms, optimizers against hand-written updates, decay by path."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxlm.errors import ConfigError
from flaxlm.training.optimizer import (
    OPTIMIZERS,
    SCHEDULES,
    OptimizerConfig,
    decay_mask,
    make_optimizer,
    make_schedule,
)


def curve(steps=100, **fields):
    schedule = make_schedule(OptimizerConfig(learning_rate=1.0, **fields), steps)
    return np.array([float(schedule(i)) for i in range(steps)])


def test_warmup_is_linear_and_its_first_step_moves():
    rates = curve(schedule="constant", warmup_steps=10)
    np.testing.assert_allclose(rates[:10], np.arange(1, 11) / 10, rtol=1e-6)
    assert (rates[10:] == 1).all()


def test_warmup_may_be_a_share_of_the_run():
    for schedule in SCHEDULES:
        share = curve(schedule=schedule, warmup_fraction=0.1)
        np.testing.assert_array_equal(share, curve(schedule=schedule, warmup_steps=10))
    np.testing.assert_array_equal(curve(4, warmup_fraction=0.1), curve(4))  # less than a step
    for fields in ({"warmup_fraction": 1.1}, {"warmup_fraction": 0.1, "warmup_steps": 3}):
        with pytest.raises(ConfigError, match="warmup_fraction"):
            OptimizerConfig(**fields)


def test_schedules_have_their_closed_forms():
    i = np.arange(10, 100)
    cosine = curve(schedule="cosine", warmup_steps=10, final_learning_rate=0.1)[10:]
    np.testing.assert_allclose(
        cosine, 0.1 + 0.9 * 0.5 * (1 + np.cos(np.pi * (i - 10) / 90)), rtol=1e-5
    )
    linear = curve(schedule="linear", warmup_steps=10, final_learning_rate=0.1)[10:]
    np.testing.assert_allclose(linear, 1 - 0.9 * (i - 10) / 90, rtol=1e-5)
    inverse = curve(schedule="inverse_sqrt", warmup_steps=10)[10:]
    np.testing.assert_allclose(inverse, np.sqrt(10 / i), rtol=1e-5)
    stable = curve(schedule="wsd", cooldown=0.2)
    assert (stable[:80] == 1).all()
    np.testing.assert_allclose(stable[80:], 1 - (np.arange(80, 100) - 80) / 20, atol=1e-6)


def test_decay_steps_end_a_schedule_before_the_run():
    rates = curve(schedule="linear", decay_steps=50)
    assert rates[25] == pytest.approx(0.5)
    assert (rates[50:] == 0).all()


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_optimizer_descends(name, schedule):
    config = OptimizerConfig(name=name, schedule=schedule, learning_rate=0.02, warmup_steps=5)
    update, _ = make_optimizer(config, 200)
    target = jnp.linspace(-1, 1, 12).reshape(3, 4)
    params = {"mlp": {"kernel": jnp.ones((3, 4)), "bias": jnp.ones((4,))}}

    def loss(p):
        return jnp.sum((p["mlp"]["kernel"] - target) ** 2) + jnp.sum(p["mlp"]["bias"] ** 2)

    @jax.jit
    def step(params, state):
        updates, state = update.update(jax.grad(loss)(params), state, params)
        return jax.tree.map(jnp.add, params, updates), state

    state, first = update.init(params), float(loss(params))
    for _ in range(200):
        params, state = step(params, state)
    assert float(loss(params)) < 0.5 * first


def one_update(config, params, grads):
    update, _ = make_optimizer(config, 10)
    updates, _ = update.update(grads, update.init(params), params)
    return jax.tree.map(np.asarray, updates)


def test_adamw_first_update_by_hand():
    params, grads = {"w": jnp.full((2, 2), 2.0)}, {"w": jnp.array([[3.0, -4.0], [0.5, 0.0]])}
    config = OptimizerConfig(learning_rate=0.1, schedule="constant", weight_decay=0.01, clip_norm=0)
    got = one_update(config, params, grads)["w"]
    g = np.asarray(grads["w"])
    np.testing.assert_allclose(got, -0.1 * (g / (np.abs(g) + 1e-8) + 0.01 * 2), rtol=1e-5)


def test_sgd_is_clipped_by_the_global_norm():
    params, grads = {"w": jnp.zeros(2)}, {"w": jnp.array([3.0, 4.0])}
    config = OptimizerConfig(
        name="sgd", learning_rate=1.0, schedule="constant", weight_decay=0.0, clip_norm=1.0
    )
    np.testing.assert_allclose(one_update(config, params, grads)["w"], [-0.6, -0.8], rtol=1e-6)


def test_adafactor_decay_is_scaled_by_the_learning_rate():
    params, grads = {"w": jnp.full((4, 4), 2.0)}, {"w": jnp.zeros((4, 4))}
    config = OptimizerConfig(
        name="adafactor", learning_rate=0.1, schedule="constant", weight_decay=0.5, clip_norm=0
    )
    np.testing.assert_allclose(one_update(config, params, grads)["w"], -0.1 * 0.5 * 2, rtol=1e-6)


def test_weight_decay_goes_by_path():
    params = {"layers": {"mlp": {"up": {"kernel": jnp.ones(1), "bias": jnp.ones(1)}},
                         "mlp_norm": {"scale": jnp.ones(1)}}}  # fmt: skip
    mask = decay_mask(OptimizerConfig(), params)
    assert mask == {"layers": {"mlp": {"up": {"kernel": True, "bias": False}},
                               "mlp_norm": {"scale": False}}}  # fmt: skip


def test_bad_values_name_the_valid_ones():
    with pytest.raises(ConfigError, match="adamw, adafactor, sgd, lion"):
        OptimizerConfig(name="adam")
    with pytest.raises(ConfigError, match="did you mean 'cosine'"):
        OptimizerConfig(schedule="cosin")
    with pytest.raises(ConfigError, match="learning_rate"):
        OptimizerConfig(learning_rate=0.0)
