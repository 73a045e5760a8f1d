"""ModernBERT (Warner et al., 2024): local and global attention in turn, rotary, gated."""

from flaxlm.interop import rope
from flaxlm.interop.names.bert import CLASSIFIER
from flaxlm.interop.names.llama import layer_types, windows
from flaxlm.interop.patterns import ANSWERS, QKV, TOKENS, fused, layers, masked_lm
from flaxlm.interop.spec import Family, Head, Key, Row, activation, need, sizes

_LAYER = {
    "attention_norm": "attn_norm",
    **fused("attn.Wqkv", "rows", QKV),
    "attention/out": "attn.Wo",
    "mlp_norm": "mlp_norm",
    **fused("mlp.Wi", "rows", ("mlp/gate", "mlp/up")),
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


def _finish(fields: dict, unread: dict) -> None:
    need(not unread.get("rope_scaling"), "rope_scaling is not supported in ModernBERT")
    rope.read_by_layer(fields, unread, 160_000.0, ("global_rope_theta", "local_rope_theta"))
    every = unread.pop("global_attn_every_n_layers", 3)
    need(isinstance(every, int) and every > 0, f"global_attn_every_n_layers={every!r}")
    # The whole width of the local window: so far to either side, and the token itself.
    width = unread.pop("local_attention", 128)
    need(isinstance(width, int) and width > 0, f"local_attention={width!r}")
    windows(fields, unread, width // 2 + 1, lambda i: i % every != 0)
    pooling = unread.pop("classifier_pooling", "cls")
    need(pooling in ("cls", "mean"), f"classifier_pooling={pooling!r} is not cls or mean")
    fields["pooling"] = _POOLING[pooling]


def _finish_write(config, out: dict) -> None:
    out["layer_types"], size = layer_types(config)
    out["local_attention"] = 2 * ((size or 65) - 1)
    out["rope_parameters"] = rope.parameters_by_layer(config)
    out["global_rope_theta"] = config.rope_theta
    out["local_rope_theta"] = config.rope_local_theta
    out["classifier_pooling"] = {v: k for k, v in _POOLING.items()}[config.pooling or "first"]


_MLM = masked_lm("head.dense", "head.norm", "decoder.weight", "decoder.bias")
_TRANSFORM = _MLM.rows[:2]

MODERNBERT = Family(
    model_types={"modernbert": "ModernBert"},
    model="encoder",
    prefix="model",
    keys=(
        *sizes(50_368, 768, 22, 12, 1152, 8192),
        activation("hidden_activation", "gelu"),
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
        "ForMaskedLM": _MLM,
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
