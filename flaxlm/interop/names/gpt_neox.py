"""GPT-NeoX (Black et al., 2022) and Pythia: attention and feed-forward side by side."""

from flaxlm.interop import rope
from flaxlm.interop.names.gpt2 import GPT2
from flaxlm.interop.spec import Family, Head, Key, Layout, Row, activation, layers


def _rows(config) -> list[Row]:
    fused = "attention.query_key_value"
    return [
        Row("embed/token", "~embed_in.weight"),
        *layers(
            "decoder/layers",
            "~layers.{n}",
            {
                "attention_norm": "input_layernorm",
                "attention/query": (fused, Layout("heads", 0, 3)),
                "attention/key": (fused, Layout("heads", 1, 3)),
                "attention/value": (fused, Layout("heads", 2, 3)),
                "attention/out": "attention.dense",
                "mlp_norm": "post_attention_layernorm",
                "mlp/up": "mlp.dense_h_to_4h",
                "mlp/down": "mlp.dense_4h_to_h",
            },
        ),
        Row("decoder/final_norm", "~final_layer_norm"),
    ]


def _finish(fields: dict, rest: dict) -> None:
    if "rotary_emb_base" in rest:
        rest.setdefault("rope_theta", rest.pop("rotary_emb_base"))
    rope.read_shared(fields, rest, 10_000.0, rest.pop("rotary_pct", 0.25))


def _finish_write(config, out: dict) -> None:
    out["rope_parameters"] = rope.parameters(config)
    out["rope_parameters"]["partial_rotary_factor"] = config.rotary_dim / config.head_dim
    out["rotary_emb_base"] = config.rope_theta
    out["rotary_pct"] = config.rotary_dim / config.head_dim


GPT_NEOX = Family(
    model_types={"gpt_neox": "GPTNeoX"},
    model="decoder",
    prefix="gpt_neox",
    keys=(
        Key("vocab_size", "vocab_size", 50_432),
        Key("max_position_embeddings", "max_length", 2048),
        Key("hidden_size", "width", 6144),
        Key("num_hidden_layers", "num_layers", 44),
        Key("num_attention_heads", "num_heads", 64),
        Key("intermediate_size", "mlp_width", 24_576),
        activation("hidden_act", "gelu"),
        Key("hidden_dropout", "embed_dropout residual_dropout", 0.0),
        Key("attention_dropout", "attention_dropout", 0.0),
        Key("classifier_dropout", "head_dropout", 0.1),
        Key("layer_norm_eps", "norm_epsilon", 1e-5),
        Key("initializer_range", "init_std", 0.02),
        Key("use_parallel_residual", "parallel", True),
        Key("attention_bias", "attention_bias attention_out_bias", True),
        Key("tie_word_embeddings", "tied", False),
    ),
    fixed={"is_decoder": (False, True)},
    constants={"positions": "rotary", "classification_bias": False},
    classes={
        **{end: head for end, head in GPT2.classes.items() if end != "LMHeadModel"},
        "ForCausalLM": Head(("lm",), (Row("heads/lm", "embed_out"),)),
    },
    rows=_rows,
    # Of the first release: the library reads names without `_prob`.
    unused=("hidden_dropout_prob", "attention_probs_dropout_prob"),
    aliases=((r"^lm_head\.", "embed_out."),),
    finish=_finish,
    finish_write=_finish_write,
)
