"""ALBERT (Lan et al., 2019): one layer applied repeatedly, and a factorised embedding."""

import functools

from flaxlm.interop.names.bert import ANSWERS, CLASSIFIER, CONSTANTS, FIXED, KEYS, TOKENS, rows
from flaxlm.interop.spec import Family, Head, Key, Row, activation, need

_rows = functools.partial(
    rows,
    path="~encoder.albert_layer_groups.0.albert_layers.0",
    layer={
        "attention/query": "attention.query",
        "attention/key": "attention.key",
        "attention/value": "attention.value",
        "attention/out": "attention.dense",
        "attention_norm": "attention.LayerNorm",
        "mlp/up": "ffn",
        "mlp/down": "ffn_output",
        "mlp_norm": "full_layer_layer_norm",
    },
    projection="~encoder.embedding_hidden_mapping_in",
)


def _finish(fields: dict, rest: dict) -> None:
    need(fields["token_types"] > 0, "type_vocab_size must be at least 1")
    need(
        fields["embed_width"] != fields["width"],
        "embedding_size equal to hidden_size still has a projection, which is not supported",
    )


_POOLER = Row("heads/pooler", "~pooler")
_MLM = (
    Row("heads/transform", "predictions.dense"),
    Row("heads/transform_norm", "predictions.LayerNorm"),
    Row("heads/mlm/kernel", "predictions.decoder.weight"),
    Row("heads/mlm/bias", "predictions.bias"),
)

ALBERT = Family(
    model_types={"albert": "Albert"},
    model="encoder",
    prefix="albert",
    keys=(
        Key("vocab_size", "vocab_size", 30_000),
        Key("embedding_size", "embed_width", 128),
        Key("hidden_size", "width", 4096),
        KEYS[2],
        Key("num_attention_heads", "num_heads", 64),
        Key("intermediate_size", "mlp_width", 16_384),
        activation("hidden_act", "gelu_new"),
        Key("hidden_dropout_prob", "embed_dropout residual_dropout", 0.0),
        Key("attention_probs_dropout_prob", "attention_dropout", 0.0),
        Key("classifier_dropout_prob", "head_dropout", 0.1),
        *KEYS[8:],
    ),
    fixed=FIXED | {"num_hidden_groups": (1,), "inner_group_num": (1,)},
    constants=CONSTANTS | {"share_layers": True},
    classes={
        "Model": Head(("pooled",), (_POOLER,)),
        "ForPreTraining": Head(
            ("mlm", "nsp"), (*_MLM, _POOLER, Row("heads/nsp", "sop_classifier.classifier"))
        ),
        "ForMaskedLM": Head(("mlm",), _MLM),
        "ForSequenceClassification": Head(("classification",), (_POOLER, CLASSIFIER)),
        "ForTokenClassification": TOKENS,
        "ForQuestionAnswering": ANSWERS,
    },
    rows=_rows,
    twins=(("predictions.bias", "predictions.decoder.bias"),),
    unused=("gap_size", "net_structure_type", "down_scale_factor", "num_memory_blocks"),
    finish=_finish,
)
