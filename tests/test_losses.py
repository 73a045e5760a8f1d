"""Cross-entropy against torch and against autodiff of the formula."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from numerics import EPS

from flaxlm.errors import ConfigError
from flaxlm.models import losses
from flaxlm.objectives import Classification

# A log-probability is the difference of numbers as large as the logits, up to 16: eps · 16 of
# rounding, which a probability and its gradient inherit, and a sum of a few has in proportion.
ATOL = RTOL = 16 * EPS


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
    np.testing.assert_allclose(value, expected.item(), rtol=RTOL)
    np.testing.assert_allclose(gradient, x.grad.numpy(), atol=ATOL)


@pytest.mark.parametrize("smoothing,z_loss", [(0.0, 0.0), (0.2, 0.0), (0.0, 1e-2), (0.1, 1e-2)])
def test_derivative_is_that_of_the_formula(case, smoothing, z_loss):
    logits, targets, weights = case

    def formula(x):
        log_z = jax.nn.logsumexp(x, axis=-1)
        q = (1 - smoothing) * jax.nn.one_hot(targets, 11) + smoothing / 11
        return jnp.sum(weights * (log_z - jnp.sum(q * x, axis=-1) + z_loss * log_z**2))

    expected = jax.value_and_grad(formula)(logits)
    found = value_and_gradient(logits, targets, weights, smoothing, z_loss)
    chex.assert_trees_all_close(found, expected, rtol=RTOL, atol=ATOL)


def test_the_derivative_for_accelerators_is_the_same(case, monkeypatch):
    logits, targets, weights = case
    expected = value_and_gradient(logits, targets, weights, 0.1, 1e-2)
    default_only = lambda *args, default, **_: default(*args)  # noqa: E731
    monkeypatch.setattr(jax.lax, "platform_dependent", default_only)
    found = value_and_gradient(logits, targets, weights, 0.1, 1e-2)
    chex.assert_trees_all_close(found, expected, atol=ATOL)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_padded_vocabulary_changes_nothing(case, smoothing):
    logits, targets, weights = case
    padded = np.pad(logits, ((0, 0), (0, 0), (0, 5)), constant_values=-np.inf)
    value, gradient = value_and_gradient(padded, targets, weights, smoothing, 1e-3)
    expected = value_and_gradient(logits, targets, weights, smoothing, 1e-3)
    np.testing.assert_allclose(value, expected[0], rtol=RTOL)
    np.testing.assert_allclose(gradient[..., :11], expected[1], atol=ATOL)
    assert (np.asarray(gradient[..., 11:]) == 0).all()


def test_a_position_without_weight_has_no_gradient_and_no_loss(case):
    logits, targets, weights = case
    changed = np.where(weights[..., None] == 0, 50.0, logits).astype(np.float32)
    first = value_and_gradient(logits, targets, weights, 0.1, 1e-2)
    second = value_and_gradient(changed, targets, weights, 0.1, 1e-2)
    np.testing.assert_allclose(first[0], second[0], rtol=RTOL)
    assert (np.asarray(second[1])[weights == 0] == 0).all()


def test_correct_is_argmax_ties_included(case):
    logits, targets, weights = case
    tied = np.round(logits / 4)
    tied[0] = 0
    _, weight, correct = losses.cross_entropy(tied, targets, weights)
    np.testing.assert_allclose(correct, (weights * (tied.argmax(-1) == targets)).sum(), rtol=RTOL)
    np.testing.assert_allclose(weight, weights.sum(), rtol=RTOL)


def test_large_logits_and_bfloat16_stay_finite(case):
    logits, targets, weights = case
    value, gradient = value_and_gradient(logits * 1e4, targets, weights)
    assert np.isfinite(value) and np.isfinite(gradient).all()
    low = jnp.asarray(logits, jnp.bfloat16)
    value, gradient = value_and_gradient(low, targets, weights)
    assert value.dtype == jnp.float32 and gradient.dtype == jnp.bfloat16
    expected = value_and_gradient(low.astype(jnp.float32), targets, weights)[0]
    np.testing.assert_allclose(value, expected, rtol=RTOL)


def test_log_likelihood_sums_a_row(case):
    logits, targets, weights = case
    p = jax.nn.log_softmax(logits)
    expected = (np.take_along_axis(p, targets[..., None], -1)[..., 0] * weights).sum(-1)
    np.testing.assert_allclose(losses.log_likelihood(logits, targets, weights), expected, rtol=1e-5)


def test_works_under_vmap_for_gradients_of_each_example(case):
    logits, targets, weights = case
    each = jax.vmap(jax.grad(lambda x, t, w: losses.cross_entropy(x, t, w)[0]))
    whole = value_and_gradient(logits, targets, weights)[1]
    chex.assert_trees_all_close(each(logits, targets, weights), whole, atol=ATOL)


class Fixed:
    """A model whose outputs are its parameters."""

    def apply(self, variables, batch, train=False, rngs=None):
        """Return the outputs."""
        return variables["params"]


CLASS_WEIGHTS = (0.5, 3.0, 1.25)


def class_batch(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "labels": rng.integers(0, 3, 9).astype(np.int32),
        "example_ids": np.array([*range(7), -1, -1], np.int32),
        "weights": (rng.random((9, 4)) < 0.7).astype(np.float32),
        "targets": rng.integers(0, 11, (9, 4)).astype(np.int32),
    }


def test_class_weights_are_those_of_torch():
    objective = Classification(labels=("a", "b", "c"), class_weights=CLASS_WEIGHTS)
    batch = class_batch()
    logits = np.random.default_rng(1).normal(size=(9, 3)).astype(np.float32)

    def mean(logits, train=True):
        terms, _ = objective.loss(Fixed(), {"classification": logits}, batch, None, train)
        return terms["loss"][0] / terms["loss"][1]

    value, gradient = jax.value_and_grad(mean)(logits)
    theirs = torch.tensor(logits, requires_grad=True)
    labels, real = torch.from_numpy(batch["labels"]).long(), slice(7)
    weight = torch.tensor(CLASS_WEIGHTS)
    loss = torch.nn.functional.cross_entropy(theirs[real], labels[real], weight=weight)
    loss.backward()
    assert float(value) == pytest.approx(loss.item(), rel=RTOL)
    np.testing.assert_allclose(gradient, theirs.grad, atol=ATOL)
    # Evaluation and accuracy count examples, whatever their class.
    plain = torch.nn.functional.cross_entropy(theirs[real], labels[real])
    assert float(mean(logits, train=False)) == pytest.approx(plain.item(), rel=RTOL)
    terms, metrics = objective.loss(Fixed(), {"classification": logits}, batch, None, True)
    right = (logits.argmax(1) == batch["labels"])[:7].sum()
    assert [float(x) for x in metrics["accuracy"]] == [right, 7]
    assert float(objective.weights(batch)["loss"]) == pytest.approx(float(terms["loss"][1]))


def test_class_weights_count_the_tokens_of_a_written_label():
    objective = Classification(labels=("a", "b", "c"), class_weights=CLASS_WEIGHTS)
    objective = objective.for_model("encoder_decoder")
    batch = class_batch()
    logits = np.random.default_rng(2).normal(size=(9, 4, 11)).astype(np.float32)
    terms, _ = objective.loss(Fixed(), {"lm": logits}, batch, None, True)
    weights = batch["weights"] * np.array(CLASS_WEIGHTS)[batch["labels"]][:, None]
    losses = torch.nn.functional.cross_entropy(
        torch.from_numpy(logits).flatten(0, 1),
        torch.from_numpy(batch["targets"]).long().flatten(),
        reduction="none",
    ).reshape(9, 4)
    assert float(terms["loss"][0]) == pytest.approx(float((losses * weights).sum()), rel=RTOL)
    assert float(terms["loss"][1]) == pytest.approx(weights.sum(), rel=RTOL)
    assert float(objective.weights(batch)["loss"]) == pytest.approx(weights.sum(), rel=RTOL)


def test_class_weights_are_one_positive_number_a_label():
    for wrong in ((1.0,), (1.0, 2.0, 3.0), (1.0, 0.0), (1.0, -2.0)):
        with pytest.raises(ConfigError, match=r"class_weights=.*2 labels \('a', 'b'\)"):
            Classification(labels=("a", "b"), class_weights=wrong)
