"""Cuts against the plain algorithm, samples against their probabilities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chisquare

from flaxlm.inference import sampling


def oracle(logits: np.ndarray, temperature: float, top_k: int, top_p: float) -> np.ndarray:
    """Return the probabilities [V] that are left, one token at a time."""
    scaled = logits.astype(np.float64) / temperature
    ranks = sorted(range(len(scaled)), key=lambda i: (-scaled[i], i))
    if top_k:
        ranks = ranks[:top_k]
    weights = np.exp(scaled[ranks] - scaled[ranks].max())
    weights /= weights.sum()
    kept, total = [], 0.0
    for token, weight in zip(ranks, weights, strict=True):
        if top_p < 1 and kept and total >= top_p:
            break
        kept.append((token, weight))
        total += weight
    left = np.zeros(len(logits))
    for token, weight in kept:
        left[token] = weight / sum(w for _, w in kept)
    return left


CUTS = [(1.0, 0, 1.0), (0.5, 3, 1.0), (2.0, 0, 0.7), (1.0, 4, 0.8), (1.3, 0, 0.01), (1.0, 50, 0.99)]


@pytest.mark.parametrize(("temperature", "top_k", "top_p"), CUTS)
def test_cuts_leave_what_the_plain_algorithm_leaves(temperature, top_k, top_p):
    rng = np.random.default_rng(0)
    logits_BV = rng.normal(0, 2, (40, 30)).astype(np.float32)
    logits_BV[:10] = np.round(logits_BV[:10])  # ties
    logits_BV[10:20, 20:] = -np.inf  # rows that are no token
    ranked, order = sampling.filtered(
        jnp.asarray(logits_BV), jnp.float32(temperature), jnp.int32(top_k), jnp.float32(top_p)
    )
    probabilities = np.zeros_like(logits_BV)
    np.put_along_axis(probabilities, np.asarray(order), np.asarray(jax.nn.softmax(ranked)), axis=1)
    for row, logits in zip(probabilities, logits_BV, strict=True):
        expected = oracle(logits, temperature, top_k, top_p)
        assert np.array_equal(row > 0, expected > 0)
        np.testing.assert_allclose(row, expected, atol=2e-6)


@pytest.mark.parametrize(("temperature", "top_k", "top_p"), [*CUTS[:4], (0.6, 0, 1.0)])
def test_samples_are_distributed_as_the_probabilities(temperature, top_k, top_p):
    logits = np.array([1.0, 0.2, -0.3, 2.0, -4.0, 0.9], np.float32)
    n = 20_000
    keys = sampling.row_keys(11, jnp.arange(n), jnp.zeros(n, jnp.int32))
    tokens, logprobs = sampling.sample(
        jnp.broadcast_to(logits[None], (n, len(logits))),
        keys,
        jnp.float32(temperature),
        jnp.int32(top_k),
        jnp.float32(top_p),
        greedy=False,
        cut=top_k > 0 or top_p < 1,
    )
    counts = np.bincount(np.asarray(tokens), minlength=len(logits))

    def p_value(expected):
        assert not counts[expected == 0].any()
        real = expected > 0
        return chisquare(counts[real], expected[real] * n).pvalue

    assert p_value(oracle(logits, temperature, top_k, top_p)) > 1e-3
    assert p_value(oracle(logits, temperature * 1.15, top_k, 1.0)) < 1e-6
    log_softmax = logits - np.log(np.exp(logits).sum())
    np.testing.assert_allclose(logprobs, log_softmax[tokens], rtol=1e-5)
