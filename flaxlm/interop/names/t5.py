"""T5, T5 v1.1, Flan-T5, ByT5 (Raffel et al., 2020; Xue et al., 2022) and mT5 (Xue et al., 2021)."""

import dataclasses

from flaxlm.interop.spec import ACTIVATIONS, Family, Head, Key, Row, layers, need


def _stack(side: str, gated: bool) -> list[Row]:
    number = 2 if side == "decoder" else 1
    dense = f"layer.{number}.DenseReluDense"
    names = {
        "attention/query": "layer.0.SelfAttention.q",
        "attention/key": "layer.0.SelfAttention.k",
        "attention/value": "layer.0.SelfAttention.v",
        "attention/out": "layer.0.SelfAttention.o",
        "attention_norm": "layer.0.layer_norm",
        "cross_attention/query": "layer.1.EncDecAttention.q",
        "cross_attention/key": "layer.1.EncDecAttention.k",
        "cross_attention/value": "layer.1.EncDecAttention.v",
        "cross_attention/out": "layer.1.EncDecAttention.o",
        "cross_attention_norm": "layer.1.layer_norm",
        "mlp_norm": f"layer.{number}.layer_norm",
        "mlp/gate": f"{dense}.wi_0",
        "mlp/up": f"{dense}.wi_1" if gated else f"{dense}.wi",
        "mlp/down": f"{dense}.wo",
    }
    bias = f"~{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    return [
        *layers(f"{side}/layers", f"~{side}.block.{{n}}", names),
        Row(f"{side}/relative/table", bias),
        Row(f"{side}/final_norm", f"~{side}.final_layer_norm"),
    ]


def _rows(config) -> list[Row]:
    sides = (_stack(side, config.gated) for side in ("encoder", "decoder"))
    return [Row("embed/token", "~shared.weight"), *(row for side in sides for row in side)]


def _finish(fields: dict, rest: dict) -> None:
    fields["num_decoder_layers"] = rest.pop("num_decoder_layers", None) or 0
    kind = rest.pop("feed_forward_proj", "relu")
    need(isinstance(kind, str), f"feed_forward_proj={kind!r} must be a string")
    gated, name = kind.startswith("gated-"), kind.removeprefix("gated-")
    # By convention of the released checkpoints, this one name means the tanh form.
    name = "gelu_new" if kind == "gated-gelu" else name
    # Both are derived from it by the library, but where a file states them they decide.
    name, gated = rest.pop("dense_act_fn", name), rest.pop("is_gated_act", gated)
    need(name in ACTIVATIONS, f"feed_forward_proj={kind!r}: choose from {', '.join(ACTIVATIONS)}")
    need(isinstance(gated, bool), f"is_gated_act={gated!r} must be true or false")
    fields["gated"], fields["activation"] = gated, ACTIVATIONS[name]


def _finish_t5(fields: dict, rest: dict) -> None:
    _finish(fields, rest)
    tied = rest.pop("tie_word_embeddings", None)
    scaled = rest.pop("scale_decoder_outputs", tied is not False)
    fields["output_scale"] = fields["width"] ** -0.5 if scaled else 1.0


def _finish_mt5(fields: dict, rest: dict) -> None:
    _finish(fields, rest)
    rest.pop("tie_word_embeddings", None)


def _finish_write(config, out: dict) -> None:
    name = {"gelu_tanh": "gelu_new"}.get(config.activation, config.activation)
    out["dense_act_fn"], out["is_gated_act"] = name, config.gated
    name = "gelu" if config.gated and name == "gelu_new" else name
    out["feed_forward_proj"] = f"gated-{name}" if config.gated else name
    out["num_decoder_layers"] = config.num_decoder_layers


def _write_t5(config, out: dict) -> None:
    _finish_write(config, out)
    out["scale_decoder_outputs"] = config.output_scale != 1
    out["tie_word_embeddings"] = config.output_scale != 1


def _write_mt5(config, out: dict) -> None:
    _finish_write(config, out)
    need(config.output_scale == 1, "mT5 does not scale its decoder's output")
    out["tie_word_embeddings"] = config.tied


_KEYS = (
    Key("vocab_size", "vocab_size", 32_128),
    Key("d_model", "width", 512),
    Key("d_kv", "head_dim", 64),
    Key("d_ff", "mlp_width", 2048),
    Key("num_layers", "num_layers", 6),
    Key("num_heads", "num_heads", 8),
    Key("relative_attention_num_buckets", "relative_buckets", 32),
    Key("relative_attention_max_distance", "relative_max_distance", 128),
    Key(
        "dropout_rate",
        "embed_dropout attention_dropout residual_dropout mlp_dropout output_dropout",
        0.1,
    ),
    Key("layer_norm_epsilon", "norm_epsilon", 1e-6),
    Key("classifier_dropout", "head_dropout", 0.0),
)
_CONSTANTS = {
    "norm": "rmsnorm",
    "positions": "relative",
    "attention_scale": 1.0,
    "attention_bias": False,
    "attention_out_bias": False,
    "mlp_bias": False,
    "init": "t5",
}
CLASSES = {
    "Model": Head(),
    "EncoderModel": Head(model="encoder"),
    "ForConditionalGeneration": Head(("lm",), (Row("heads/lm", "lm_head"),)),
    "ForSequenceClassification": Head(
        ("classification",),
        (
            Row("heads/pooler", "classification_head.dense"),
            Row("heads/classification", "classification_head.out_proj"),
        ),
        fields={"pooler": "dense"},
    ),
    "ForTokenClassification": Head(
        ("token_classification",),
        (Row("heads/token_classification", "classifier"),),
        model="encoder",
    ),
    "ForQuestionAnswering": Head(
        ("question_answering",), (Row("heads/question_answering", "qa_outputs"),)
    ),
}
# These classes call the backbone `transformer`; the others have no name for it.
PREFIXED = ("ForSequenceClassification", "ForTokenClassification")
_UNUSED = ("initializer_factor", "n_positions", "is_decoder")

T5 = Family(
    model_types={"t5": "T5"},
    model="encoder_decoder",
    prefix="transformer",
    prefixed=PREFIXED,
    keys=_KEYS,
    fixed={},
    constants=_CONSTANTS,
    classes=CLASSES,
    rows=_rows,
    twins=(("~shared.weight", "~encoder.embed_tokens.weight", "~decoder.embed_tokens.weight"),),
    ignored=(r"EncDecAttention\.relative_attention_bias\.weight$",),
    unused=_UNUSED,
    finish=_finish_t5,
    finish_write=_write_t5,
)

MT5 = dataclasses.replace(
    T5,
    model_types={"mt5": "MT5"},
    keys=(
        Key("vocab_size", "vocab_size", 250_112),
        *_KEYS[1:3],
        Key("d_ff", "mlp_width", 1024),
        Key("num_layers", "num_layers", 8),
        Key("num_heads", "num_heads", 6),
        *_KEYS[6:],
    ),
    finish=_finish_mt5,
    finish_write=_write_mt5,
)
