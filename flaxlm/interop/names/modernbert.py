"""ModernBERT (Warner et al., 2024): local and global attention in turn, rotary, gated."""

from flaxlm.interop import rope
from flaxlm.interop.names.bert import ANSWERS, CLASSIFIER, TOKENS
from flaxlm.interop.names.llama import layer_types, windows
from flaxlm.interop.spec import Family, Head, Key, Layout, Row, activation, layers, need

_LAYER = {
    "attention_norm": "attn_norm",
    "attention/query": ("attn.Wqkv", Layout("rows", 0, 3)),
    "attention/key": ("attn.Wqkv", Layout("rows", 1, 3)),
    "attention/value": ("attn.Wqkv", Layout("rows", 2, 3)),
    "attention/out": "attn.Wo",
    "mlp_norm": "mlp_norm",
    "mlp/gate": ("mlp.Wi", Layout("rows", 0, 2)),
    "mlp/up": ("mlp.Wi", Layout("rows", 1, 2)),
    "mlp/down": "mlp.Wo",
}


def _rows(config) -> list[Row]:
    return [
        Row("embed/token", "~embeddings.tok_embeddings.weight"),
        Row("embed/norm", "~embeddings.norm"),
        # The first layer reads what the embedding's norm gives, without a norm of its own.
        *layers("encoder/first", "~layers.0", _LAYER),
        *layers("encoder/layers", "~layers.{n}", _LAYER, start=1),
        Row("encoder/final_norm", "~final_norm"),
    ]


_POOLING = {"cls": "first", "mean": "mean"}


def _finish(fields: dict, rest: dict) -> None:
    keys = ("global_rope_theta", "local_rope_theta")
    need(not rest.get("rope_scaling"), "rope_scaling is not supported in ModernBERT")
    rope.read_by_layer(fields, rest, 160_000.0, 10_000.0, keys)
    every = rest.pop("global_attn_every_n_layers", 3)
    need(isinstance(every, int) and every > 0, f"global_attn_every_n_layers={every!r}")
    # The whole width of the local window: so far to either side, and the token itself.
    width = rest.pop("local_attention", 128)
    need(isinstance(width, int) and width > 0, f"local_attention={width!r}")
    windows(fields, rest, width // 2 + 1, lambda i: i % every != 0)
    pooling = rest.pop("classifier_pooling", "cls")
    need(pooling in ("cls", "mean"), f"classifier_pooling={pooling!r} is not cls or mean")
    fields["pooling"] = _POOLING[pooling]


def _finish_write(config, out: dict) -> None:
    out["layer_types"], size = layer_types(config)
    out["local_attention"] = 2 * ((size or 65) - 1)
    out["rope_parameters"] = {
        "full_attention": rope.parameters(config),
        "sliding_attention": rope.local_parameters(config),
    }
    out["global_rope_theta"] = config.rope_theta
    out["local_rope_theta"] = config.rope_local_theta
    out["classifier_pooling"] = {v: k for k, v in _POOLING.items()}[config.pooling or "first"]


_TRANSFORM = (Row("heads/transform", "head.dense"), Row("heads/transform_norm", "head.norm"))

MODERNBERT = Family(
    model_types={"modernbert": "ModernBert"},
    model="encoder",
    prefix="model",
    keys=(
        Key("vocab_size", "vocab_size", 50_368),
        Key("hidden_size", "width", 768),
        Key("intermediate_size", "mlp_width", 1152),
        Key("num_hidden_layers", "num_layers", 22),
        Key("num_attention_heads", "num_heads", 12),
        activation("hidden_activation", "gelu"),
        Key("max_position_embeddings", "max_length", 8192),
        Key("initializer_range", "init_std", 0.02),
        Key("norm_eps", "norm_epsilon", 1e-5),
        Key("norm_bias", "norm_bias", False),
        Key("attention_bias", "attention_bias attention_out_bias", False),
        Key("attention_dropout", "attention_dropout", 0.0),
        Key("embedding_dropout", "embed_dropout", 0.0),
        Key("mlp_bias", "mlp_bias", False),
        Key("mlp_dropout", "mlp_dropout", 0.0),
        Key("decoder_bias", "mlm_bias", True),
        Key("classifier_bias", "transform_bias", False),
        Key("classifier_dropout", "head_dropout", 0.0),
        activation("classifier_activation", "gelu", "transform_activation"),
    ),
    fixed={"position_embedding_type": ("absolute", "rope"), "tie_word_embeddings": (True,)},
    constants={
        "positions": "rotary",
        "gated": True,
        "embed_norm": True,
        "first_norm": False,
        "pooler": "transform",
    },
    classes={
        "Model": Head(),
        "ForMaskedLM": Head(
            ("mlm",),
            (
                *_TRANSFORM,
                Row("heads/mlm/kernel", "decoder.weight"),
                Row("heads/mlm/bias", "decoder.bias"),
            ),
        ),
        "ForSequenceClassification": Head(("classification",), (*_TRANSFORM, CLASSIFIER)),
        "ForTokenClassification": Head(TOKENS.heads, (*_TRANSFORM, *TOKENS.rows)),
        "ForQuestionAnswering": Head(
            ANSWERS.heads, (*_TRANSFORM, Row("heads/question_answering", "classifier"))
        ),
    },
    rows=_rows,
    unused=(
        *("deterministic_flash_attn", "sparse_prediction", "sparse_pred_ignore_index"),
        *("initializer_cutoff_factor", "reference_compile", "repad_logits_with_grad"),
        "layer_norm_eps",
    ),
    finish=_finish,
    finish_write=_finish_write,
)
