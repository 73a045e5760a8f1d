"""Cached decoding equals the full forward pass: prompts padded on the left, then token by token."""

import jax
import numpy as np
import pytest
import tiny
from numerics import EPS
from tiny import V

from flaxlm.errors import ConfigError

# Logits of size 5, and a dozen sums of 16 one after another: eps · 5 · √(12 · 16), and room for
# what is above the average.
ATOL = 4 * EPS * 5 * (12 * 16) ** 0.5
PROMPT, TOTAL, PADS = 5, 11, (0, 3)
CASES = {
    "learned": ("decoder", {}),
    "sinusoidal_multi_query": ("decoder", {"positions": "sinusoidal", "num_kv_heads": 1}),
    "rotary_grouped": ("decoder", {"positions": "rotary", "num_kv_heads": 2, "head_dim": 6}),
    "relative": ("decoder", {"positions": "relative", "relative_buckets": 6, "tied": False}),
    "windows": ("decoder", {"windows": (3, 0), "positions": "rotary", "scan_layers": False}),
    "post_norm": ("decoder", {"norm_position": "post", "final_norm": False}),
    "t5": ("encoder_decoder", {"positions": "relative", "norm": "rmsnorm", "output_scale": 0.25}),
    "cross_rotary": ("encoder_decoder", {"positions": "rotary", "num_kv_heads": 2}),
    "neox": ("decoder", {"positions": "rotary", "rotary_dim": 2, "parallel": True}),
    "shared": ("decoder", {"share_layers": True, "first_norm": False, "position_offset": 2}),
    "gemma": (
        "decoder",
        {
            **{
                "positions": "rotary",
                "rope_local_theta": 50.0,
                "windows": (3, 0),
                "norm": "rmsnorm",
            },
            **{"norm_position": "sandwich", "norm_offset": 1.0, "qk_norm": True},
            **{"attention_softcap": 2.0, "output_softcap": 3.0},
        },
    ),
    "llama3": (
        "decoder",
        {"positions": "rotary", "rope_scaling": "llama3", "rope_factor": 4.0}
        | {"rope_original_length": 8},
    ),
    "bart": (
        "encoder_decoder",
        {"separate_positions": True, "embed_norm": True, "norm_position": "post"}
        | {"position_offset": 2, "final_norm": False},
    ),
    "lstm": ("recurrent", {"cell": "lstm"}),
    "gru": ("recurrent", {"cell": "gru"}),
}


def rows():
    """Return a batch of two rows, the second with three tokens of padding at its left."""
    rng = np.random.default_rng(3)
    real = (np.arange(TOTAL)[None] >= np.array(PADS)[:, None]).astype(np.int32)
    batch = {
        "tokens": rng.integers(0, V, (2, TOTAL)),
        "segment_ids": real,
        "positions": np.maximum(np.cumsum(real, axis=1) - 1, 0),
        "encoder_tokens": rng.integers(0, V, (2, 6)),
        "encoder_segment_ids": np.array([[1] * 6, [0, 0, 1, 1, 1, 1]]),
    }
    return {name: np.asarray(x, np.int32) for name, x in batch.items()}


def prompt_of(batch):
    return {k: v if k.startswith("encoder") else v[:, :PROMPT] for k, v in batch.items()}


@pytest.mark.parametrize("case", CASES)
def test_cached_decoding_equals_full_forward(case):
    family, fields = CASES[case]
    _, module, params = tiny.model(family, **fields)
    batch = rows()
    variables = {"params": params}
    full = tiny.apply(module, params, batch)["lm"]
    prefill = jax.jit(lambda b: module.apply(variables, b, TOTAL, method="prefill"))
    step = jax.jit(lambda t, s: module.apply(variables, t, s, method="decode_step"))
    logits, state = prefill(prompt_of(batch))
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype), state)
    for i in range(PROMPT, TOTAL):
        np.testing.assert_allclose(logits, full[:, i - 1], rtol=0, atol=ATOL)
        logits, state = step(batch["tokens"][:, i : i + 1], state)
    np.testing.assert_allclose(logits, full[:, -1], rtol=0, atol=ATOL)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == shapes, "a loop carries the cache"
    # And the padded row is what it would be alone, without padding.
    alone = {k: v[1:] if k.startswith("encoder") else v[1:, PADS[1] :] for k, v in batch.items()}
    single = tiny.apply(module, params, alone)["lm"]
    np.testing.assert_allclose(single[0], full[1, PADS[1] :], rtol=0, atol=ATOL)


def test_a_prefix_is_read_in_both_directions():
    """A prompt marked as prefix: its tokens see later ones, and decoding goes on from there."""
    _, module, params = tiny.model("decoder")
    batch = rows()
    batch["prefix_mask"] = np.tile(np.arange(TOTAL) < PROMPT, (2, 1)).astype(np.int32)
    full = tiny.apply(module, params, batch)["lm"]
    run = jax.jit(module.apply, static_argnames=("cache_length", "method"))
    logits, state = run({"params": params}, prompt_of(batch), cache_length=TOTAL, method="prefill")
    np.testing.assert_allclose(logits, full[:, PROMPT - 1], rtol=0, atol=ATOL)
    token = batch["tokens"][:, PROMPT : PROMPT + 1]
    logits, _ = run({"params": params}, token, state, method="decode_step")
    np.testing.assert_allclose(logits, full[:, PROMPT], rtol=0, atol=ATOL)
    causal = tiny.apply(module, params, batch | {"prefix_mask": batch["prefix_mask"] * 0})
    assert np.abs(causal["lm"][:, PROMPT - 1] - full[:, PROMPT - 1]).max() > 1e-2


def test_rows_that_do_not_fit_are_refused():
    _, module, params = tiny.model("decoder")
    prompt = prompt_of(rows())
    for length, named in ((PROMPT - 1, "does not fit"), (17, "max_length")):
        with pytest.raises(ConfigError, match=named):
            module.apply({"params": params}, prompt, length, method="prefill")
