"""Masks, buckets, rotations and attention itself against loops."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import transformer_oracle
from hypothesis import given, settings
from hypothesis import strategies as st

from flaxlm.models import attention
from flaxlm.models.layers import default_positions

LENGTH = 7
ROWS = st.lists(st.integers(0, 3), min_size=LENGTH, max_size=LENGTH)
BITS = st.lists(st.integers(0, 1), min_size=LENGTH, max_size=LENGTH)


@settings(max_examples=50, deadline=None)
@given(ROWS, ROWS, BITS, st.booleans())
def test_visibility_is_what_it_says(queries, keys, prefix, causal):
    if causal:
        keys = queries
    mask = attention.visibility(
        attention.query_key_distances(LENGTH, LENGTH),
        jnp.array([queries]),
        jnp.array([keys]),
        causal,
        jnp.array([prefix]) if causal else None,
    )
    for i in range(LENGTH):
        for j in range(LENGTH):
            seen = queries[i] == keys[j] and (not causal or j <= i or prefix[j] == 1)
            assert float(mask[0, 0, 0, i, j]) == (0 if seen else np.float32(attention.MASKED))


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("buckets", "max_distance"), [(32, 128), (8, 10), (6, 20)])
def test_relative_buckets_equal_a_loop(causal, buckets, max_distance):
    distance = np.arange(-300, 301)
    ours = attention.relative_bucket(jnp.asarray(distance), buckets, max_distance, causal)
    loop = [transformer_oracle.bucket(int(d), buckets, max_distance, causal) for d in distance]
    assert np.array_equal(ours, loop)
    # Both directions: T5 never fills the bucket of distance 0 to the right.
    assert set(loop) == set(range(buckets)) - (set() if causal else {buckets // 2})


def test_rotated_products_depend_on_distance_alone():
    c = tiny.config("decoder", positions="rotary", head_dim=8)
    q, k = np.random.default_rng(0).normal(size=(2, 1, 1, 1, 8)).astype(np.float32)

    def product(i, j):
        at = [attention.rotary_table(jnp.array([[p]]), c) for p in (i, j)]
        return float(jnp.sum(attention.rotate(q, at[0]) * attention.rotate(k, at[1])))

    assert product(9, 4) == pytest.approx(product(105, 100), abs=1e-4)
    assert abs(product(9, 4) - product(9, 5)) > 1e-2


def loops(q, k, v, bias, cap=0.0):
    """softmax(c · tanh(q · k / c) + bias) · v, one query at a time, in float64; c = 0: no cap."""
    q, k, v, bias = (np.asarray(x, np.float64) for x in (q, k, v, bias))
    out = np.zeros(q.shape)
    for b, i, h, g in np.ndindex(q.shape[:-1]):
        score = k[b, :, h] @ q[b, i, h, g]
        score = (cap * np.tanh(score / cap) if cap else score) + bias[b, h, g, i]
        weight = np.exp(score - score.max())
        out[b, i, h, g] = weight / weight.sum() @ v[b, :, h]
    return out


@pytest.mark.parametrize("implementation", attention.ATTENTION)
@pytest.mark.parametrize(("groups", "cap"), [(1, 0.0), (2, 0.0), (4, 0.0), (2, 1.5)])
def test_implementation_equals_loops(implementation, groups, cap):
    """Forward against loops, backward against central differences of the loops."""
    rng = np.random.default_rng(0)
    B, L, M, H, K = 2, 3, 5, 4 // groups, 4
    q = rng.normal(size=(B, L, H, groups, K)).astype(np.float32)
    k, v = rng.normal(size=(2, B, M, H, K)).astype(np.float32)
    relative = rng.normal(size=(1, H, groups, L, M)).astype(np.float32)
    hidden = rng.random((B, 1, 1, L, M)) < 0.3
    hidden[..., 0] = False
    mask = np.where(hidden, np.float32(attention.MASKED), 0)
    draw = rng.normal(size=q.shape).astype(np.float32)
    attend = attention.ATTENTION[implementation]

    def ours(q, k, v, relative):
        return attend(q, k, v, mask, relative, 0.0, None, cap)

    out, pull = jax.vjp(ours, q, k, v, relative)
    np.testing.assert_allclose(out, loops(q, k, v, mask + relative, cap), atol=1e-5)
    arguments = [q, k, v, relative]
    for n, gradient in enumerate(pull(jnp.asarray(draw))):
        direction = rng.normal(size=arguments[n].shape)
        ends = []
        for step in (1e-4, -1e-4):
            moved = [x.astype(np.float64) for x in arguments]
            moved[n] = moved[n] + step * direction
            ends.append((loops(*moved[:3], mask + moved[3], cap) * draw).sum())
        slope = (ends[0] - ends[1]) / 2e-4
        np.testing.assert_allclose((gradient * direction).sum(), slope, atol=1e-3)


@pytest.mark.parametrize("implementation", attention.ATTENTION)
def test_dropout_of_probabilities(implementation):
    """With values 1 and one key a head, an output is 0 or 1 / (1 − rate); its gradient agrees."""
    q, k = jnp.ones((2, 64, 1, 2, 4)), jnp.ones((2, 1, 1, 4))
    v = jnp.ones((2, 1, 1, 4))
    words = jnp.array([5, 6], jnp.uint32)
    attend = attention.ATTENTION[implementation]
    out, pull = jax.vjp(lambda v: attend(q, k, v, None, None, 0.25, words, 0.0), v)
    kept = np.asarray(out[..., 0]) != 0
    assert 0.6 < kept.mean() < 0.9
    np.testing.assert_allclose(out[..., 0], np.where(kept, 1 / 0.75, 0), rtol=1e-6)
    gradient = pull(jnp.ones_like(out))[0]
    np.testing.assert_allclose(gradient[:, 0, 0, 0], kept.sum((1, 2, 3)) / 0.75, rtol=1e-5)


@pytest.mark.parametrize("implementation", attention.ATTENTION)
def test_a_query_that_sees_nothing_is_finite(implementation):
    rng = np.random.default_rng(0)
    q = rng.normal(size=(1, 2, 1, 1, 4)).astype(np.float32)
    k, v = rng.normal(size=(2, 1, 3, 1, 4)).astype(np.float32)
    mask = np.full((1, 1, 1, 2, 3), attention.MASKED, np.float32)
    attend = attention.ATTENTION[implementation]
    out, pull = jax.vjp(lambda *x: attend(*x, mask, None, 0.0, None, 0.0), q, k, v)
    assert all(np.isfinite(x).all() for x in (out, *pull(jnp.ones_like(out))))


@settings(max_examples=30, deadline=None)
@given(ROWS)
def test_default_positions_restart_with_the_segment(segments):
    expected = [0]
    for before, here in itertools.pairwise(segments):
        expected.append(expected[-1] + 1 if before == here else 0)
    ours = default_positions(jnp.zeros((1, LENGTH), jnp.int32), jnp.array([segments]))
    assert ours[0].tolist() == expected
