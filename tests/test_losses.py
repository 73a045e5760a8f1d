"""Cross-entropy against torch and against autodiff of the formula."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from flaxlm.objectives import losses


@pytest.fixture(scope="module")
def case():
    rng = np.random.default_rng(0)
    logits = (4 * rng.standard_normal((3, 5, 11))).astype(np.float32)
    targets = rng.integers(0, 11, (3, 5)).astype(np.int32)
    weights = (rng.random((3, 5)) * (rng.random((3, 5)) < 0.7)).astype(np.float32)
    return logits, targets, weights


def value_and_gradient(logits, targets, weights, smoothing=0.0, z_loss=0.0):
    def total(logits):
        return losses.cross_entropy(logits, targets, weights, smoothing, z_loss)[0]

    return jax.jit(jax.value_and_grad(total))(logits)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_equals_torch(case, smoothing):
    logits, targets, weights = case
    x = torch.tensor(logits, requires_grad=True)
    each = torch.nn.functional.cross_entropy(
        x.reshape(-1, 11),
        torch.tensor(targets).long().reshape(-1),
        reduction="none",
        label_smoothing=smoothing,
    )
    expected = (each * torch.tensor(weights).reshape(-1)).sum()
    expected.backward()
    value, gradient = value_and_gradient(logits, targets, weights, smoothing)
    np.testing.assert_allclose(value, expected.item(), rtol=1e-6)
    np.testing.assert_allclose(gradient, x.grad.numpy(), atol=1e-6)


@pytest.mark.parametrize("smoothing,z_loss", [(0.0, 0.0), (0.2, 0.0), (0.0, 1e-2), (0.1, 1e-2)])
def test_derivative_is_that_of_the_formula(case, smoothing, z_loss):
    logits, targets, weights = case

    def formula(x):
        log_z = jax.nn.logsumexp(x, axis=-1)
        q = (1 - smoothing) * jax.nn.one_hot(targets, 11) + smoothing / 11
        return jnp.sum(weights * (log_z - jnp.sum(q * x, axis=-1) + z_loss * log_z**2))

    expected = jax.value_and_grad(formula)(logits)
    found = value_and_gradient(logits, targets, weights, smoothing, z_loss)
    chex.assert_trees_all_close(found, expected, rtol=2e-6, atol=1e-6)


def test_the_derivative_for_accelerators_is_the_same(case, monkeypatch):
    logits, targets, weights = case
    expected = value_and_gradient(logits, targets, weights, 0.1, 1e-2)
    default_only = lambda *args, default, **_: default(*args)  # noqa: E731
    monkeypatch.setattr(jax.lax, "platform_dependent", default_only)
    found = value_and_gradient(logits, targets, weights, 0.1, 1e-2)
    chex.assert_trees_all_close(found, expected, atol=1e-7)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_padded_vocabulary_changes_nothing(case, smoothing):
    logits, targets, weights = case
    padded = np.pad(logits, ((0, 0), (0, 0), (0, 5)), constant_values=-np.inf)
    value, gradient = value_and_gradient(padded, targets, weights, smoothing, 1e-3)
    expected = value_and_gradient(logits, targets, weights, smoothing, 1e-3)
    np.testing.assert_allclose(value, expected[0], rtol=1e-6)
    np.testing.assert_allclose(gradient[..., :11], expected[1], atol=1e-6)
    assert (np.asarray(gradient[..., 11:]) == 0).all()


def test_a_position_without_weight_has_no_gradient_and_no_loss(case):
    logits, targets, weights = case
    changed = np.where(weights[..., None] == 0, 50.0, logits).astype(np.float32)
    first = value_and_gradient(logits, targets, weights, 0.1, 1e-2)
    second = value_and_gradient(changed, targets, weights, 0.1, 1e-2)
    np.testing.assert_allclose(first[0], second[0], rtol=1e-6)
    assert (np.asarray(second[1])[weights == 0] == 0).all()


def test_correct_is_argmax_ties_included(case):
    logits, targets, weights = case
    tied = np.round(logits / 4)
    tied[0] = 0
    _, weight, correct = losses.cross_entropy(tied, targets, weights)
    np.testing.assert_allclose(correct, (weights * (tied.argmax(-1) == targets)).sum(), rtol=1e-6)
    np.testing.assert_allclose(weight, weights.sum(), rtol=1e-6)


def test_large_logits_and_bfloat16_stay_finite(case):
    logits, targets, weights = case
    value, gradient = value_and_gradient(logits * 1e4, targets, weights)
    assert np.isfinite(value) and np.isfinite(gradient).all()
    low = jnp.asarray(logits, jnp.bfloat16)
    value, gradient = value_and_gradient(low, targets, weights)
    assert value.dtype == jnp.float32 and gradient.dtype == jnp.bfloat16
    expected = value_and_gradient(low.astype(jnp.float32), targets, weights)[0]
    np.testing.assert_allclose(value, expected, rtol=1e-6)


def test_log_likelihood_sums_a_row(case):
    logits, targets, weights = case
    p = jax.nn.log_softmax(logits)
    expected = (np.take_along_axis(p, targets[..., None], -1)[..., 0] * weights).sum(-1)
    np.testing.assert_allclose(losses.log_likelihood(logits, targets, weights), expected, rtol=1e-5)


def test_works_under_vmap_for_gradients_of_each_example(case):
    logits, targets, weights = case
    each = jax.vmap(jax.grad(lambda x, t, w: losses.cross_entropy(x, t, w)[0]))
    whole = value_and_gradient(logits, targets, weights)[1]
    chex.assert_trees_all_close(each(logits, targets, weights), whole, atol=1e-7)
