"""Attention: who sees whom, positions inside the scores, and the implementations.

Masks are made on the device, from segment ids. Padding is segment 0 and sees only padding, so its
rows are finite without a special case, and no real token ever sees it.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.ad_checkpoint import checkpoint_name

from flaxlm.models.config import TransformerConfig
from flaxlm.models.layers import Dense, Norm, aligned, dropout, kernel_axes, parameter, rates
from flaxlm.sharding import constrain

AXES = (
    *kernel_axes(r"attention/query", ("embed",), ("heads", "head_dim")),
    *kernel_axes(r"attention/(key|value)", ("embed",), ("kv_heads", "head_dim")),
    *kernel_axes(r"attention/out", ("heads", "head_dim"), ("embed",)),
    (r"relative/table$", (None, "heads")),
)

# Added to a score that must not count: exp(MASKED − max) is exactly 0 in float32.
MASKED = -1e30


@struct.dataclass
class Scores:
    """What is added to attention scores; arrays broadcast to [B, H, G, L, M], float32."""

    mask: jax.Array | None = None  # 0 and MASKED
    relative: jax.Array | None = None  # the learned bias
    distance: jax.Array | None = None  # int32 [L, M], query − key: each layer's window is of it


def query_key_distances(query_length: int, key_length: int, first_query=0) -> jax.Array:
    """Return int32 [L, M], query index − key index, where the first query has `first_query`."""
    query_L = jnp.arange(query_length, dtype=jnp.int32) + first_query
    return query_L[:, None] - jnp.arange(key_length, dtype=jnp.int32)[None, :]


def visibility(distance_LM, query_segments, key_segments, causal, prefix_mask=None):
    """Return the additive mask float32 [B or 1, 1, 1, L, M], or None if everything is visible.

    Args:
      distance_LM: from `query_key_distances`.
      query_segments, key_segments: int32 [B, L] and [B, M]; None: one document a row.
      causal: whether a query sees only keys up to its own index.
      prefix_mask: int32 [B, M], 1 on keys that every query of the document sees (prefix LM).
    """
    visible = None
    if causal:
        visible = (distance_LM >= 0)[None]
        if prefix_mask is not None:
            visible = visible | (prefix_mask != 0)[:, None, :]
    if query_segments is not None and key_segments is not None:
        same = query_segments[:, :, None] == key_segments[:, None, :]
        visible = same if visible is None else same & visible
    return None if visible is None else jnp.where(visible, 0.0, MASKED)[:, None, None]


def relative_bucket(distance: jax.Array, buckets: int, max_distance: int, causal: bool):
    """Return T5's bucket of each distance (query − key), int32 (Raffel et al., 2020, 2.1).

    Half of the buckets hold one distance each, the others grow geometrically up to `max_distance`;
    if not `causal`, each direction has half of the buckets.
    """
    first = jnp.zeros_like(distance)
    if not causal:
        buckets //= 2
        first = jnp.where(distance < 0, buckets, 0)
        distance = jnp.abs(distance)
    distance = jnp.maximum(distance, 0)
    exact = buckets // 2
    ratio = jnp.log(jnp.maximum(distance, 1).astype(jnp.float32) / exact)
    ratio = ratio / jnp.log(jnp.float32(max_distance / exact))
    large = exact + (ratio * (buckets - exact)).astype(jnp.int32)
    return first + jnp.where(distance < exact, distance, jnp.minimum(large, buckets - 1))


class RelativeBias(nn.Module):
    """A learned number per head and bucketed distance, added to the scores of every layer."""

    config: TransformerConfig
    causal: bool

    @nn.compact
    def __call__(self, distance_LM: jax.Array) -> jax.Array:
        """Return float32 [1, H, G, L, M]."""
        c = self.config
        std = c.width**-0.5 if c.init == "t5" else c.init_std
        rows, init = c.relative_buckets, nn.initializers.normal(std)
        table = parameter(self, "table", init, (rows, c.num_heads), c.param_dtype)
        bucket_LM = relative_bucket(distance_LM, rows, c.relative_max_distance, self.causal)
        # As a product with one-hot rows the gradient is a product, instead of a scatter of L · M.
        one_hot = jax.nn.one_hot(bucket_LM, rows, dtype=jnp.float32)
        bias = jnp.einsum("LMR,RN->NLM", one_hot, table.astype(jnp.float32))
        return bias.reshape(1, c.num_kv_heads, c.queries_per_head, *distance_LM.shape)


def rotary_rates(config: TransformerConfig, local: bool = False) -> np.ndarray:
    """Return radians a position, float32 [R / 2]; R = rotary_dim.

    `linear` scaling divides them by `rope_factor` (Chen et al., 2023). `llama3` divides those of
    wavelengths above rope_original_length / rope_low_frequency, keeps those below
    rope_original_length / rope_high_frequency and interpolates between them (Llama 3 herd, 2024).
    `local` asks for the rates of layers with a window, those of `rope_local_theta`.
    """
    c = config
    if local:
        return rates(c.rotary_dim, c.rope_local_theta)
    plain = rates(c.rotary_dim, c.rope_theta)
    if c.rope_scaling == "linear":
        return plain / np.float32(c.rope_factor)
    if c.rope_scaling == "llama3":
        turns = c.rope_original_length * plain / (2 * np.pi)  # in the original length
        low, high = c.rope_low_frequency, c.rope_high_frequency
        share = np.clip((turns - low) / (high - low), 0, 1)
        return ((1 - share) * plain / c.rope_factor + share * plain).astype(np.float32)
    return plain


def rotary_table(positions_BL: jax.Array, config: TransformerConfig, local: bool = False):
    """Return (cos, sin), float32 [B, L, 1, R / 2] each; see `rotary_rates`."""
    turn = rotary_rates(config, local)[None, None]
    angle = (positions_BL.astype(jnp.float32)[..., None] * turn)[:, :, None]
    return jnp.cos(angle), jnp.sin(angle)


def rotate(x_BLHK: jax.Array, table) -> jax.Array:
    """Rotate each pair (x_i, x_{i + R/2}) by its position's angle (Su et al., 2021).

    Dimensions beyond R, if there are any, stay as they are.
    """
    cos, sin = table
    turned, still = jnp.split(x_BLHK.astype(jnp.float32), [2 * cos.shape[-1]], axis=-1)
    first, second = jnp.split(turned, 2, axis=-1)
    parts = [first * cos - second * sin, second * cos + first * sin, still]
    return jnp.concatenate(parts, axis=-1).astype(x_BLHK.dtype)


# The backward pass is written out, as in FlashAttention (Dao et al., 2022): probabilities are
# recomputed from scores and their log-sum, so that nothing of size L · M is kept, and every product
# takes its operands as they lie in memory, where autodiff would transpose arrays of size L · M.
@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 7))
def einsum_attention(q_BLHGK, k_BMHK, v_BMHK, mask, relative, rate: float, words, cap: float):
    """Return softmax(q · k + mask + relative) · v as [B, L, H, G, K]; the softmax in float32.

    Queries are scaled already, and q · k is softly bounded to ±cap first (0: unbounded). `mask`
    and `relative`, float32, broadcast to [B, H, G, L, M] or are None; only `relative` has a
    gradient. `rate` and `words` are those of the probabilities' dropout, see `layers.dropout`.
    """
    return _attend_forward(q_BLHGK, k_BMHK, v_BMHK, mask, relative, rate, words, cap)[0]


def _product(a, b):
    """Return a · b for [B, H, i, j] and [B, H, j, k], accumulated in float32."""
    dims = (((3,), (2,)), ((0, 1), (0, 1)))
    return jax.lax.dot_general(a, b, dims, preferred_element_type=jnp.float32)


def _heads_first(x_BLHGK):
    """Return [B, H, L · G, K]: the queries of one key/value head are rows of one matrix."""
    b, length, h, g, k = x_BLHGK.shape
    return jnp.transpose(x_BLHGK, (0, 2, 1, 3, 4)).reshape(b, h, length * g, k)


def _masked_scores(q_BHqK, k_BHMK, groups, mask, relative, cap):
    """Return the scores, and tanh(q · k / cap) (None: no cap), float32 [B, H, L, G, M] each."""
    s_BHqM = _product(q_BHqK, jnp.swapaxes(k_BHMK, 2, 3))
    s_BHLGM = s_BHqM.reshape(*s_BHqM.shape[:2], -1, groups, s_BHqM.shape[-1])
    capped = None
    if cap:
        capped = jnp.tanh(s_BHLGM / cap)
        s_BHLGM = cap * capped
    for extra in (mask, relative):
        if extra is not None:
            s_BHLGM = s_BHLGM + jnp.swapaxes(extra, 2, 3)
    return s_BHLGM, capped


def _attend_forward(q_BLHGK, k_BMHK, v_BMHK, mask, relative, rate, words, cap):
    groups, dtype = q_BLHGK.shape[3], v_BMHK.dtype
    q_BHqK = _heads_first(q_BLHGK)
    k_BHMK, v_BHMK = (jnp.swapaxes(x, 1, 2) for x in (k_BMHK, v_BMHK))
    s_BHLGM, _ = _masked_scores(q_BHqK, k_BHMK, groups, mask, relative, cap)
    top_BHLG1 = jnp.max(s_BHLGM, axis=-1, keepdims=True)
    p_BHLGM = jnp.exp(s_BHLGM - top_BHLG1)
    sum_BHLG1 = jnp.sum(p_BHLGM, axis=-1, keepdims=True)
    p_BHLGM = dropout(p_BHLGM, rate, words).astype(dtype)
    o_BHqK = _product(p_BHLGM.reshape(*q_BHqK.shape[:3], -1), v_BHMK)
    # Normalised after the product: K numbers a query instead of M.
    o_BHqK = (o_BHqK / sum_BHLG1.reshape(*o_BHqK.shape[:3], 1)).astype(dtype)
    log_sum_BHLG1 = top_BHLG1 + jnp.log(sum_BHLG1)
    o_BLHGK = _queries_first(o_BHqK, groups)
    kept = checkpoint_name((q_BHqK, k_BHMK, v_BHMK, o_BLHGK, log_sum_BHLG1), "attention")
    return kept[3], (*kept, mask, relative, words)


def _queries_first(x_BHqK, groups):
    b, h, _, k = x_BHqK.shape
    return jnp.transpose(x_BHqK.reshape(b, h, -1, groups, k), (0, 2, 1, 3, 4))


def _attend_backward(rate, cap, kept, g_BLHGK):
    q_BHqK, k_BHMK, v_BHMK, o_BLHGK, log_sum_BHLG1, mask, relative, words = kept
    groups, dtype = g_BLHGK.shape[3], v_BHMK.dtype
    s_BHLGM, capped = _masked_scores(q_BHqK, k_BHMK, groups, mask, relative, cap)
    p_BHLGM = jnp.exp(s_BHLGM - log_sum_BHLG1)
    # Σ_m p · dp of the softmax's derivative, without the L · M arrays: it equals o · do.
    g32 = g_BLHGK.astype(jnp.float32)
    delta_BLHG1 = jnp.sum(g32 * o_BLHGK.astype(jnp.float32), axis=-1, keepdims=True)
    g_BHqK = _heads_first(g_BLHGK)
    dp_BHqM = _product(g_BHqK, jnp.swapaxes(v_BHMK, 2, 3))
    dp_BHLGM = dropout(dp_BHqM.reshape(p_BHLGM.shape), rate, words)
    ds_BHLGM = p_BHLGM * (dp_BHLGM - jnp.swapaxes(delta_BLHG1, 1, 2))
    # The derivative of the soft cap, which `relative`, added after it, does not see.
    dqk_BHLGM = ds_BHLGM if capped is None else ds_BHLGM * (1 - capped * capped)
    ds_BHqM = dqk_BHLGM.reshape(dp_BHqM.shape).astype(dtype)
    dropped_BHqM = dropout(p_BHLGM, rate, words).reshape(dp_BHqM.shape).astype(dtype)
    dv_BHKM = _product(jnp.swapaxes(g_BHqK, 2, 3), dropped_BHqM)
    dk_BHKM = _product(jnp.swapaxes(q_BHqK, 2, 3), ds_BHqM)
    dq_BLHGK = _queries_first(_product(ds_BHqM, k_BHMK), groups).astype(dtype)
    dk_BMHK, dv_BMHK = (jnp.transpose(x, (0, 3, 1, 2)).astype(dtype) for x in (dk_BHKM, dv_BHKM))
    d_relative = None
    if relative is not None:
        ds_BHGLM = jnp.swapaxes(ds_BHLGM, 2, 3)
        axes = tuple(i for i, n in enumerate(relative.shape) if n == 1 != ds_BHGLM.shape[i])
        d_relative = jnp.sum(ds_BHGLM, axis=axes, keepdims=True)
    return dq_BLHGK, dk_BMHK, dv_BMHK, None, d_relative, None


einsum_attention.defvjp(_attend_forward, _attend_backward)

ATTENTION: dict[str, Callable] = {"einsum": einsum_attention}


class Attention(nn.Module):
    """Multi-head, grouped-query or multi-query attention over x itself or over a memory."""

    config: TransformerConfig
    out_scale: float = 1.0  # of the initial standard deviation of `out`

    def setup(self):
        """Make the parts; see the class."""
        c = self.config
        query_std = key_std = c.init_std
        out_std = c.init_std * self.out_scale
        if c.init == "t5":
            query_std, key_std = (c.width * c.head_dim) ** -0.5, c.width**-0.5
            out_std = (c.num_heads * c.head_dim) ** -0.5
        inputs, query, key = (c.width,), (c.num_heads, c.head_dim), (c.num_kv_heads, c.head_dim)
        self.query = Dense(c, inputs, query, query_std, c.attention_bias)
        self.key = Dense(c, inputs, key, key_std, c.attention_bias)
        self.value = Dense(c, inputs, key, key_std, c.attention_bias)
        self.out = Dense(c, query, inputs, out_std, c.attention_out_bias)
        if c.qk_norm:
            self.query_norm = Norm(c, "rmsnorm")
            self.key_norm = Norm(c, "rmsnorm")

    def keys_values(self, memory_BMD: jax.Array, rotary=None):
        """Return keys and values [B, M, H, K] of a sequence, rotated by `rotary`."""
        key, value = self.key(memory_BMD), self.value(memory_BMD)
        if self.config.qk_norm:
            key = self.key_norm(key)
        if rotary is not None:
            key = rotate(key, rotary)
        pin = ("batch", "length", "kv_heads", "head_dim")
        return constrain(key, *pin), constrain(value, *pin)

    def __call__(
        self, x_BLD, key_BMHK, value_BMHK, scores: Scores, *, rotary=None, window=None, words=None
    ) -> jax.Array:
        """Return [B, L, D]: x attends to given keys and values.

        `window` (int32 scalar, this layer's) hides keys at that distance and beyond.
        """
        c = self.config
        query = self.query(x_BLD)
        if c.qk_norm:
            query = self.query_norm(query)
        if rotary is not None:
            query = rotate(query, rotary)
        query = constrain(query, "batch", "length", "heads", "head_dim")
        query = query * jnp.asarray(c.scale, query.dtype)
        query = query.reshape(*query.shape[:2], c.num_kv_heads, c.queries_per_head, c.head_dim)
        mask = scores.mask
        if window is not None:
            outside = jnp.where(jnp.abs(scores.distance) < window, 0.0, MASKED)
            mask = aligned(outside, 5) if mask is None else mask + aligned(outside, 5)
        attend = ATTENTION[c.attention]
        rate, cap = c.attention_dropout, c.attention_softcap
        y = attend(query, key_BMHK, value_BMHK, mask, scores.relative, rate, words, cap)
        return self.out(y.reshape(*y.shape[:2], c.num_heads, c.head_dim))
