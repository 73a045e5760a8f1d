"""The three Transformer families: every field against a slow oracle, and what must not matter."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import transformer_oracle
from flax.errors import ScopeParamShapeError
from tiny import B, L, V

from flaxlm import sharding, tree
from flaxlm.errors import ConfigError
from flaxlm.models import MODELS, abstract_params, attention, build
from flaxlm.models.layers import dropout, keep_mask
from flaxlm.models.transformer import Block, Context, Stack

FIELDS = {
    "defaults": ("decoder", {}),
    "post_norm": ("encoder", {"norm_position": "post", "final_norm": False}),
    "rmsnorm": ("decoder", {"norm": "rmsnorm"}),
    "norm_epsilon": ("decoder", {"norm_epsilon": 0.5}),
    "norm_bias_off": ("decoder", {"norm_bias": False}),
    "embed_norm": ("encoder", {"embed_norm": True}),
    "sinusoidal": ("encoder", {"positions": "sinusoidal"}),
    "rotary": ("decoder", {"positions": "rotary", "rope_theta": 100.0}),
    "relative": (
        "encoder",
        {"positions": "relative", "relative_buckets": 8, "relative_max_distance": 6},
    ),
    "relative_causal": (
        "decoder",
        {"positions": "relative", "relative_buckets": 6, "relative_max_distance": 8},
    ),
    "no_positions": ("decoder", {"positions": "none"}),
    "grouped_query": ("decoder", {"num_kv_heads": 2, "positions": "rotary"}),
    "multi_query": ("encoder", {"num_kv_heads": 1}),
    "head_dim": ("decoder", {"head_dim": 6}),
    "windows": ("decoder", {"windows": (2, 0)}),
    "one_window": ("encoder", {"windows": (3,)}),
    "attention_scale": ("decoder", {"attention_scale": 1.0}),
    "gelu": ("decoder", {"activation": "gelu"}),
    "relu": ("encoder", {"activation": "relu"}),
    "silu": ("decoder", {"activation": "silu"}),
    "gated": ("decoder", {"gated": True, "mlp_width": 24}),
    "attention_bias_off": ("decoder", {"attention_bias": False}),
    "attention_out_bias_off": ("decoder", {"attention_out_bias": False}),
    "mlp_bias_off": ("encoder", {"mlp_bias": False, "gated": True}),
    "untied": ("decoder", {"tied": False}),
    "output": ("decoder", {"output_scale": 0.3, "output_bias": True}),
    "token_types": ("encoder", {"token_types": 2}),
    "embed_scale": ("decoder", {"embed_scale": 4.0}),
}
TOLERANCE = 2e-5  # of the largest logit: float32 against float64
# Two float32 programs of numbers of size 5 to 10: as in test_decoding.py, 5e-5 is four times the
# rounding of a dozen sums of 16.


@pytest.mark.parametrize("case", FIELDS)
def test_field_equals_oracle(case):
    family, fields = FIELDS[case]
    c, module, params = tiny.model(family, **fields)
    batch = tiny.packed()
    if case == "windows":  # with a prefix too: both hide and show keys
        batch["prefix_mask"] = (batch["positions"] < 3).astype(np.int32)
    ours = tiny.apply(module, params, batch)["lm"]
    wide = jax.tree.map(lambda x: x.astype(np.float64), params)
    expected = transformer_oracle.forward(c, wide, batch, family)
    real = batch["segment_ids"] > 0
    assert np.abs(ours - expected)[real].max() <= TOLERANCE * np.abs(expected).max()


def test_every_field_of_the_config_is_in_a_test():
    covered = set().union(*(fields for _, fields in FIELDS.values()))
    elsewhere = {
        *("vocab_size", "vocab_multiple", "width", "num_layers", "num_heads", "max_length"),
        *("num_decoder_layers", "attention", "init", "init_std", "scale_residual_init"),
        "pooling",
        *("dtype", "param_dtype", "scan_layers", "remat"),
        *(
            f"{part}_dropout"
            for part in ("embed", "attention", "residual", "mlp", "output", "head")
        ),
        # Choices of published architectures: tests/test_hf_parity.py.
        *("embed_width", "share_layers", "norm_offset", "first_norm", "parallel", "qk_norm"),
        *("position_offset", "separate_positions", "rotary_dim", "rope_local_theta"),
        *("rope_scaling", "rope_factor", "rope_low_frequency", "rope_high_frequency"),
        *("rope_original_length", "attention_softcap", "output_softcap", "pooler"),
        *("pooler_activation", "transform_activation", "transform_bias", "mlm_bias"),
        "classification_bias",
    }
    names = {field.name for field in dataclasses.fields(MODELS["decoder"].config_class)}
    assert names == covered | elsewhere


PACKED = {
    "bidirectional": ("encoder", {"norm_position": "post", "token_types": 2}),
    "causal": ("decoder", {"positions": "rotary", "num_kv_heads": 2, "windows": (3, 0)}),
    "prefix": ("decoder", {}),
    "cross": ("encoder_decoder", {"positions": "relative", "norm": "rmsnorm", "gated": True}),
    "lstm": ("recurrent", {"cell": "lstm"}),
    "gru": ("recurrent", {"cell": "gru"}),
}


@pytest.mark.parametrize("case", PACKED)
def test_packed_equals_separate(case):
    """Document A changes: hidden, logits and gradients of document B keep every bit."""
    family, fields = PACKED[case]
    _, module, params = tiny.model(family, **fields)
    batch = tiny.packed()
    if case == "prefix":
        batch["prefix_mask"] = (batch["positions"] < 3).astype(np.int32)
    is_b = batch["segment_ids"] == 2
    f = tiny.logits_and_gradients(module, jnp.asarray(is_b, jnp.float32))
    (_, out), gradients = f(params, batch)
    (_, changed), changed_gradients = f(params, tiny.change_document(batch, 1))
    for name in ("hidden", "lm"):
        assert np.array_equal(out[name][is_b], changed[name][is_b]), name
        is_a = batch["segment_ids"] == 1
        assert np.abs(out[name] - changed[name])[is_a].max() > 1e-3, "document A must have changed"
    for path, gradient in tree.flatten(gradients).items():
        assert np.array_equal(gradient, tree.flatten(changed_gradients)[path]), path
    # Padding is nobody's document: its content changes no real token, and it stays finite.
    padded, _ = f(params, tiny.change_document(batch, 0))
    assert np.array_equal(out["lm"][is_b | is_a], padded[1]["lm"][is_b | is_a])
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((out, gradients)))
    # Alone in a row, B has the same logits up to the order of summation.
    alone = {}
    for name, x in batch.items():
        here = batch["encoder_segment_ids" if name.startswith("encoder") else "segment_ids"][0] == 2
        alone[name] = x[:1, here]
    single = tiny.apply(module, params, alone)["lm"]
    np.testing.assert_allclose(single[0], out["lm"][0][is_b[0]], rtol=0, atol=5e-5)


@pytest.mark.parametrize("family", ["encoder", "decoder", "encoder_decoder", "recurrent"])
def test_defaults_equal_what_they_stand_for(family):
    _, module, params = tiny.model(family)
    batch = {k: v for k, v in tiny.packed().items() if k in ("tokens", "encoder_tokens")}
    full = dict(batch)
    for name in ("", "encoder_"):
        tokens = batch[f"{name}tokens"]
        full[f"{name}segment_ids"] = np.ones_like(tokens)
        full[f"{name}positions"] = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)
    short, long = (tiny.apply(module, params, given)["lm"] for given in (batch, full))
    np.testing.assert_allclose(short, long, rtol=0, atol=5e-5)
    packed = tiny.packed()
    without = {k: v for k, v in packed.items() if k != "positions"}
    told, counted = (tiny.apply(module, params, given)["lm"] for given in (packed, without))
    assert np.array_equal(told, counted)


@pytest.mark.parametrize(
    "change", [{"scan_layers": False}, {"remat": "cheap"}, {"remat": "dots"}, {"remat": "full"}]
)
def test_scan_remat_and_loop_agree(change, plain_gradients):
    """Unrolled layers and every remat policy give the scanned plain model's gradients."""
    _, module, params = tiny.model("decoder", **(LAYERED | change))
    batch = tiny.packed()
    weights = jnp.asarray(batch["segment_ids"] > 0, jnp.float32)
    other = tiny.logits_and_gradients(module, weights)(params, batch)
    for a, b in zip(jax.tree.leaves(plain_gradients), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=5e-5 * max(1, np.abs(a).max()))


LAYERED = {"windows": (2, 0), "positions": "rotary", "remat": "none"}


@pytest.fixture(scope="module")
def plain_gradients():
    _, module, params = tiny.model("decoder", **LAYERED)
    batch = tiny.packed()
    weights = jnp.asarray(batch["segment_ids"] > 0, jnp.float32)
    return tiny.logits_and_gradients(module, weights)(params, batch)


def test_stack_equals_blocks_one_by_one():
    c, module, params = tiny.model("decoder", windows=(2, 0), final_norm=False)
    batch = tiny.packed()

    @jax.jit
    def watched(params):
        seen = {}

        def watch(next_function, args, kwargs, context):
            out = next_function(*args, **kwargs)
            if type(context.module) is Stack and context.method_name == "__call__":
                seen["input"], seen["output"] = args[0], out[0]
            return out

        with nn.intercept_methods(watch):
            module.apply({"params": params}, batch)
        return seen

    seen = watched(params)
    distance = attention.query_key_distances(L, L)
    segments = batch["segment_ids"]
    mask = attention.visibility(distance, segments, segments, causal=True)
    context = Context(scores=attention.Scores(mask=mask, distance=distance))
    block = jax.jit(lambda *args: Block(c).apply(*args, context)[0])
    x = seen["input"]
    for i, window in enumerate((2, 2**30)):
        layer = jax.tree.map(lambda leaf, i=i: leaf[i], params["decoder"]["layers"])
        x = block({"params": layer}, x, (jnp.int32(window), None))
    np.testing.assert_allclose(x, seen["output"], rtol=0, atol=5e-5)


@pytest.mark.parametrize("family", ["encoder", "decoder", "encoder_decoder", "recurrent"])
def test_padding_rows_of_the_table_count_for_nothing(family):
    """Changing them changes no logit, and their gradient is exactly 0."""
    _, module, params = tiny.model(family)
    batch = tiny.packed()
    f = tiny.logits_and_gradients(module, jnp.ones((B, L)))
    (_, out), gradients = f(params, batch)
    assert out["lm"].shape == (B, L, V) and out["lm"].dtype == jnp.float32
    path = next(p for p in tree.flatten(params) if p.endswith("/token"))
    flat = tree.flatten(params)
    assert flat[path].shape[0] == 40 and not np.any(tree.flatten(gradients)[path][V:])
    flat[path] = flat[path].copy()
    flat[path][V:] = 1e6
    (_, changed), _ = f(tree.unflatten(flat), batch)
    assert np.array_equal(out["lm"], changed["lm"])


@pytest.mark.parametrize("part", ["embed", "attention", "residual", "mlp", "output"])
def test_each_dropout_acts_in_training_alone(part):
    _, module, params = tiny.model("encoder_decoder", **{f"{part}_dropout": 0.5})
    _, plain, _ = tiny.model("encoder_decoder")
    batch = tiny.packed()
    run = jax.jit(
        lambda key: module.apply({"params": params}, batch, train=True, rngs={"dropout": key})
    )
    first, again, other = (run(jax.random.key(seed))["lm"] for seed in (0, 0, 1))
    assert np.array_equal(first, again) and not np.allclose(first, other, atol=1e-2)
    evaluated = tiny.apply(module, params, batch)["lm"]
    assert np.array_equal(evaluated, tiny.apply(plain, params, batch)["lm"])
    assert not np.allclose(first, evaluated, atol=1e-2)


def test_head_dropout():
    _, module, params = tiny.model("encoder", {"classification": 3}, head_dropout=0.5)
    batch = tiny.packed()
    rngs = {"dropout": jax.random.key(0)}
    train = jax.jit(lambda: module.apply({"params": params}, batch, True, rngs=rngs))()
    plain = tiny.apply(module, params, batch)
    assert np.array_equal(train["hidden"], plain["hidden"])
    assert not np.allclose(train["classification"], plain["classification"], atol=1e-2)


@pytest.mark.parametrize("family", ["encoder", "decoder", "encoder_decoder", "recurrent"])
def test_pooling(family):
    """The vector that stands for a sequence, against numpy on the final hidden state."""
    batch = tiny.packed() | {"segment_ids": np.array([[1] * 5 + [0] * 6, [1] * 11], np.int32)}
    found = {}
    for pooling in ("", "first", "last", "mean"):
        _, module, params = tiny.model(family, {"pooled": 0}, pooling=pooling)
        out = tiny.apply(module, params, batch)
        found[pooling] = np.asarray(out["pooled"])
        hidden = np.asarray(out["hidden"])
        if pooling == "first":
            pooler = params["heads"]["pooler"]
            expected = np.tanh(hidden[:, 0] @ pooler["kernel"] + pooler["bias"])
        elif pooling == "last":
            expected = np.stack([hidden[0, 4], hidden[1, 10]])
        elif pooling == "mean":
            expected = np.stack([hidden[0, :5].mean(0), hidden[1].mean(0)])
        else:
            continue
        np.testing.assert_allclose(found[pooling], expected, atol=1e-5)
    own = "first" if family == "encoder" else "last"
    np.testing.assert_array_equal(found[""], found[own])


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_dropout_mask_is_random(rate):
    """Rate, and agreement with shifted, transposed and re-keyed masks, within 5 deviations."""
    n = 512
    words = jax.random.bits(jax.random.key(0), (8, 2), jnp.uint32)
    masks = [np.asarray(keep_mask(w, (n, n), rate)) for w in words]
    keep = 1 - rate
    chance = keep**2 + rate**2
    allowed = 5 * np.sqrt(chance * (1 - chance)) / n
    for mask in masks:
        assert abs(mask.mean() - keep) <= 5 * np.sqrt(rate * keep) / n
        for shifted in (np.roll(mask, 1, 0), np.roll(mask, 1, 1), np.roll(mask, 64, 1), mask.T):
            assert abs((mask == shifted).mean() - chance) <= 2 * allowed
    for other in masks[1:]:
        assert abs((masks[0] == other).mean() - chance) <= allowed


def test_dropout_backward_uses_the_forward_mask():
    words = jnp.array([3, 4], jnp.uint32)
    x = jnp.linspace(1, 2, 24).reshape(4, 6)
    y, pull = jax.vjp(jax.jit(lambda x: dropout(x, 0.25, words)), x)
    kept = np.asarray(y != 0)
    assert 0 < kept.sum() < kept.size
    np.testing.assert_allclose(y, np.where(kept, x / 0.75, 0), rtol=1e-6)
    np.testing.assert_allclose(pull(jnp.ones_like(x))[0], np.where(kept, 1 / 0.75, 0), rtol=1e-6)


def test_bfloat16_compute_keeps_float32_parameters_and_logits():
    """Norms and softmax in float32: the error is that of rounding inputs of products, a few %."""
    _, module, params = tiny.model("decoder", dtype="bfloat16")
    _, exact, _ = tiny.model("decoder")
    batch = tiny.packed()
    out = tiny.apply(module, params, batch)
    assert out["hidden"].dtype == jnp.bfloat16 and out["lm"].dtype == jnp.float32
    expected = tiny.apply(exact, params, batch)["lm"]
    assert np.abs(out["lm"] - expected).max() < 0.05 * np.abs(expected).max()
    for name, expected in (("dtype", jnp.float32), ("param_dtype", jnp.bfloat16)):
        drawn = abstract_params("decoder", tiny.config("decoder", **{name: "bfloat16"}), {"lm": 0})
        assert all(x.dtype == expected for x in jax.tree.leaves(drawn))


@pytest.mark.parametrize("family", MODELS)
def test_sharded_equals_single_device(family):
    """37 words and 3 heads over a 2×2×2 mesh, where neither divides."""
    fields = {} if family == "recurrent" else {"num_heads": 3, "head_dim": 6, "num_kv_heads": 3}
    _, module, params = tiny.model(family, **fields)
    batch = {k: np.concatenate([v, v]) for k, v in tiny.packed().items()}
    f = tiny.logits_and_gradients(module, jnp.ones((2 * B, L)) / 10)
    expected = f(params, batch)
    config = sharding.ShardingConfig(data=2, fsdp=2, tensor=2)
    mesh = sharding.make_mesh(config)
    with sharding.use(mesh, config):
        placed = jax.device_put(
            params, sharding.param_shardings(MODELS[family].axes, params, mesh, config)
        )
        rows = jax.device_put(batch, sharding.batch_sharding(mesh, config))
        f = tiny.logits_and_gradients(module, jnp.ones((2 * B, L)) / 10)
        ours = f(placed, rows)
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(ours), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=5e-5 * max(1, np.abs(a).max()))


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"norm": "layer_norm"}, "layernorm"),
        ({"positions": "rotery"}, "rotary"),
        ({"width": 30}, "num_heads"),
        ({"num_kv_heads": 3}, "num_kv_heads"),
        ({"embed_dropout": 1.0}, "embed_dropout"),
        ({"windows": (-1,)}, "windows"),
        ({"head_dim": 5, "positions": "rotary"}, "head_dim"),
        ({"num_layers": 0}, "num_layers"),
        ({"attention": "flash"}, "einsum"),
        ({"pooling": "max"}, "mean"),
    ],
)
def test_impossible_configs_are_refused_by_name(fields, named):
    with pytest.raises(ConfigError, match=named):
        tiny.config("decoder", **fields)


@pytest.mark.parametrize("family", ["encoder", "recurrent"])
def test_parameters_of_another_shape_are_refused(family):
    """Each of them, or it would be broadcast in silence."""
    _, module, params = tiny.model(family)
    batch, flat = tiny.packed(), tree.flatten(params)
    run = lambda params: jax.eval_shape(module.apply, {"params": params}, batch)  # noqa: E731
    run(params)
    for path, leaf in flat.items():
        other = tree.unflatten(flat | {path: leaf[..., :1]})
        with pytest.raises(ScopeParamShapeError):
            run(other)


def test_too_long_rows_and_unknown_heads_are_refused():
    batch = {"tokens": np.zeros((1, 17), np.int32)}
    _, module, params = tiny.model("decoder")
    with pytest.raises(ConfigError, match="max_length"):
        module.apply({"params": params}, batch)
    with pytest.raises(ConfigError, match="classification"):
        tiny.params("decoder", tiny.config("decoder"), {"clasification": 2})
    with pytest.raises(ConfigError, match="encoder_decoder"):
        build("encoder-decoder", tiny.config("decoder"))
