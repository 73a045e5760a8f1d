"""GPT-2 (Radford et al., 2019); GPT-NeoX (Black et al., 2022) and Pythia."""

from flaxlm.interop import rope
from flaxlm.interop.patterns import ANSWERS, QKV, TOKENS, fused, layers, one_module
from flaxlm.interop.spec import Family, Head, Key, Layout, Row, activation, sizes


def _rows(config) -> list[Row]:
    columns = Layout("columns")
    names = fused("attn.c_attn", "columns", QKV) | {
        "attention_norm": "ln_1",
        "attention/out": ("attn.c_proj", Layout("columns", inputs=2)),
        "mlp_norm": "ln_2",
        "mlp/up": ("mlp.c_fc", columns),
        "mlp/down": ("mlp.c_proj", columns),
    }
    return [
        Row("embed/token", "~wte.weight"),
        Row("embed/position", "~wpe.weight"),
        *layers("decoder/layers", "~h.{n}", names),
        Row("decoder/final_norm", "~ln_f"),
    ]


def _finish(fields: dict, unread: dict) -> None:
    if not unread.pop("scale_attn_weights", True):
        fields["attention_scale"] = 1.0
    if not fields["mlp_width"]:
        fields["mlp_width"] = 4 * fields["width"]


def _finish_write(config, out: dict) -> None:
    out["scale_attn_weights"] = config.scale != 1


_SIZES = "vocab_size n_embd n_layer n_head n_inner n_positions initializer_range"

GPT2 = Family(
    model_types={"gpt2": "GPT2"},
    model="decoder",
    prefix="transformer",
    keys=(
        *sizes(50_257, 768, 12, 12, None, 1024, names=_SIZES),
        activation("activation_function", "gelu_new"),
        Key("resid_pdrop", "residual_dropout", 0.1),
        Key("embd_pdrop", "embed_dropout", 0.1),
        Key("attn_pdrop", "attention_dropout", 0.1),
        Key("layer_norm_epsilon", "norm_epsilon", 1e-5),
        Key("tie_word_embeddings", "tied", True),
    ),
    fixed={"scale_attn_by_inverse_layer_idx": (False,)},
    constants={"scale_residual_init": True, "classification_bias": False},
    classes={
        "Model": Head(),
        "LMHeadModel": one_module("lm", "lm_head"),
        "ForSequenceClassification": one_module("classification", "score"),
        "ForTokenClassification": TOKENS,
        "ForQuestionAnswering": ANSWERS,
    },
    rows=_rows,
    unused=("reorder_and_upcast_attn", "is_decoder"),
    finish=_finish,
    finish_write=_finish_write,
)


def _rows_neox(config) -> list[Row]:
    names = fused("attention.query_key_value", "heads", QKV) | {
        "attention_norm": "input_layernorm",
        "attention/out": "attention.dense",
        "mlp_norm": "post_attention_layernorm",
        "mlp/up": "mlp.dense_h_to_4h",
        "mlp/down": "mlp.dense_4h_to_h",
    }
    return [
        Row("embed/token", "~embed_in.weight"),
        *layers("decoder/layers", "~layers.{n}", names),
        Row("decoder/final_norm", "~final_layer_norm"),
    ]


def _finish_neox(fields: dict, unread: dict) -> None:
    if "rotary_emb_base" in unread:
        unread.setdefault("rope_theta", unread.pop("rotary_emb_base"))
    rope.read_shared(fields, unread, unread.pop("rotary_pct", 0.25))


def _write_neox(config, out: dict) -> None:
    out["rotary_emb_base"] = config.rope_theta
    out["rotary_pct"] = config.rotary_dim / config.head_dim
    out["rope_parameters"] = rope.parameters(config) | {"partial_rotary_factor": out["rotary_pct"]}


# Attention and feed-forward side by side.
GPT_NEOX = Family(
    model_types={"gpt_neox": "GPTNeoX"},
    model="decoder",
    prefix="gpt_neox",
    keys=(
        *sizes(50_432, 6144, 44, 64, 24_576, 2048),
        activation("hidden_act", "gelu"),
        Key("hidden_dropout", "embed_dropout residual_dropout", 0.0),
        Key("attention_dropout", "attention_dropout", 0.0),
        Key("classifier_dropout", "head_dropout", 0.1),
        Key("layer_norm_eps", "norm_epsilon", 1e-5),
        Key("use_parallel_residual", "parallel", True),
        Key("attention_bias", "attention_bias attention_out_bias", True),
        Key("tie_word_embeddings", "tied", False),
    ),
    fixed={"is_decoder": (False, True)},
    constants={"positions": "rotary", "classification_bias": False},
    classes={
        **{end: head for end, head in GPT2.classes.items() if end != "LMHeadModel"},
        "ForCausalLM": one_module("lm", "embed_out"),
    },
    rows=_rows_neox,
    # Of the first release: the library reads names without `_prob`.
    unused=("hidden_dropout_prob", "attention_probs_dropout_prob"),
    aliases=((r"^lm_head\.", "embed_out."),),
    finish=_finish_neox,
    finish_write=_write_neox,
)
