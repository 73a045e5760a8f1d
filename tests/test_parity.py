"""Logits and gradients of the published architectures equal those of `transformers`.

float32; weights of standard deviation 0.2, at which a wrong GELU, epsilon, rotary base or bucket
moves logits by more than 5e-4. What is left is the order of summation: logits agree to 2e-5 of the
largest, gradients to 1e-4.
"""

import jax
import jax.numpy as jnp
import numpy as np
import published
import pytest
from numerics import EPS

from flaxlm import tree
from flaxlm.models import build, preset

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

V, D, B, L, M = 61, 32, 3, 12, 10
SMALL = {"vocab_size": V, "vocab_multiple": 1, "width": D, "num_layers": 2, "num_heads": 4}


def make_gpt2():
    config = transformers.GPT2Config(
        vocab_size=V, n_positions=32, n_embd=D, n_layer=2, n_head=4, attn_implementation="eager"
    )
    ours = preset("gpt2", **SMALL, max_length=32)
    return transformers.GPT2LMHeadModel(config), ours, published.gpt2, ("lm",)


def make_bert():
    config = transformers.BertConfig(
        vocab_size=V,
        hidden_size=D,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=4 * D,
        max_position_embeddings=32,
        attn_implementation="eager",
    )
    ours = preset("bert_tiny", **SMALL, max_length=32)
    return transformers.BertForPreTraining(config), ours, published.bert, ("mlm", "nsp")


def make_llama():
    config = transformers.LlamaConfig(
        vocab_size=V,
        hidden_size=D,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=56,
        max_position_embeddings=32,
        rms_norm_eps=1e-5,
        attn_implementation="eager",
    )
    ours = preset("llama2_7b", **SMALL, num_kv_heads=2, mlp_width=56, max_length=32)
    return transformers.LlamaForCausalLM(config), ours, published.llama, ("lm",)


def make_t5(kind):
    more = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
    name, more = ("t5_small", {}) if kind == "t5" else ("t5_v1_1_small", more)
    config = transformers.T5Config(
        vocab_size=V,
        d_model=D,
        d_kv=8,
        d_ff=48,
        num_layers=2,
        num_heads=4,
        relative_attention_num_buckets=8,
        relative_attention_max_distance=10,
        **more,
    )
    scale = {"output_scale": D**-0.5} if kind == "t5" else {}
    ours = preset(
        name,
        **SMALL,
        head_dim=8,
        mlp_width=48,
        relative_buckets=8,
        relative_max_distance=10,
        **scale,
    )
    model = transformers.T5ForConditionalGeneration(config)
    if kind == "t5_v1_1":  # transformers 5 shares the table at construction whatever it is told
        model.lm_head.weight = torch.nn.Parameter(torch.zeros(V, D))
    return model, ours, published.t5, ("lm",)


MAKERS = {
    "gpt2": make_gpt2,
    "bert": make_bert,
    "llama": make_llama,
    "t5": lambda: make_t5("t5"),
    "t5_v1_1": lambda: make_t5("t5_v1_1"),
}


def inputs(family):
    """Return our batch, with padding at the right, and the keyword arguments of `transformers`."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, V, (B, L))
    real = (np.arange(L)[None] < np.array([L, L - 4, L - 1])[:, None]).astype(np.int32)
    batch = {"tokens": tokens, "segment_ids": real}
    theirs = {"input_ids": tokens, "attention_mask": real}
    if family == "encoder":
        batch["token_types"] = theirs["token_type_ids"] = rng.integers(0, 2, (B, L))
    if family == "encoder_decoder":
        source = rng.integers(0, V, (B, M))
        seen = (np.arange(M)[None] < np.array([M - 3, M, M - 1])[:, None]).astype(np.int32)
        batch |= {"encoder_tokens": source, "encoder_segment_ids": seen}
        theirs = {
            "input_ids": source,
            "attention_mask": seen,
            "decoder_input_ids": tokens,
            "decoder_attention_mask": real,
        }
    batch = {k: jnp.asarray(v, jnp.int32) for k, v in batch.items()}
    return batch, {k: torch.tensor(v).long() for k, v in theirs.items()}, real.astype(bool)


@pytest.fixture(scope="module", params=MAKERS)
def pair(request):
    model, (family, config), convert, heads = MAKERS[request.param]()
    published.randomise(model, seed=1)
    batch, theirs, real = inputs(family)
    module = build(family, config, {name: 2 if name == "nsp" else 0 for name in heads})
    return model, module, convert, heads, batch, theirs, real


def scores(output, heads):
    if heads == ("lm",):
        return {"lm": output.logits}
    return {"mlm": output.prediction_logits, "nsp": output.seq_relationship_logits}


def close(ours, theirs, tolerance, what):
    np.testing.assert_allclose(
        ours, theirs, rtol=0, atol=tolerance * max(np.abs(theirs).max(), 1e-3), err_msg=what
    )


def test_logits_equal_transformers(pair):
    model, module, convert, heads, batch, theirs, real = pair
    params = jax.tree.map(jnp.asarray, convert(model))
    ours = jax.jit(lambda p: module.apply({"params": p}, batch))(params)
    with torch.no_grad():
        expected = scores(model(**theirs), heads)
    for name, logits in expected.items():
        rows = real if logits.ndim == 3 else slice(None)
        assert logits.abs().max() > 0.5, "too small to tell right from wrong"
        close(np.asarray(ours[name])[rows], logits.numpy()[rows], 2e-5, name)


def test_gradients_equal_transformers(pair):
    """Of a fixed random projection of the logits, for every parameter: 1e-4 of its largest."""
    model, module, convert, heads, batch, theirs, real = pair
    expected = scores(model(**theirs), heads)
    rng = np.random.default_rng(2)
    draws = {}
    for name, logits in expected.items():
        rows = real[..., None] if logits.ndim == 3 else np.ones((B, 1))
        draws[name] = (rng.normal(size=logits.shape) * rows).astype(np.float32)
    model.zero_grad()
    sum((logits * torch.tensor(draws[name])).sum() for name, logits in expected.items()).backward()

    def projection(params):
        out = module.apply({"params": params}, batch)
        return sum(jnp.sum(out[name] * draw) for name, draw in draws.items())

    ours = jax.jit(jax.grad(projection))(jax.tree.map(jnp.asarray, convert(model)))
    wanted = tree.flatten(convert(model, gradients=True))
    assert wanted.keys() == tree.flatten(ours).keys()
    largest = max(np.abs(g).max() for g in wanted.values())
    for path, gradient in tree.flatten(ours).items():
        # A key bias shifts all scores of a query alike: its true gradient is 0, only noise is left.
        bound = 1e-4 * np.abs(wanted[path]).max() + 32 * EPS * largest
        assert np.abs(np.asarray(gradient) - wanted[path]).max() <= bound, path
