"""T5, T5 v1.1, Flan-T5, ByT5 (Raffel et al., 2020; Xue et al., 2022), mT5 and BART."""

import dataclasses

from flaxlm.interop.names.bert import BERT
from flaxlm.interop.patterns import ANSWERS, NO_BIAS, TOKENS, attention, layers, one_module
from flaxlm.interop.spec import ACTIVATIONS, Family, Head, Key, Row, activation, need, sizes


def _stack(side: str, gated: bool) -> list[Row]:
    last = "layer.2" if side == "decoder" else "layer.1"
    dense = f"{last}.DenseReluDense"
    names = {
        **attention("layer.0.SelfAttention", "q k v o"),
        "attention_norm": "layer.0.layer_norm",
        **attention("layer.1.EncDecAttention", "q k v o", "cross_attention"),
        "cross_attention_norm": "layer.1.layer_norm",
        "mlp_norm": f"{last}.layer_norm",
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
    stacks = [*_stack("encoder", config.gated), *_stack("decoder", config.gated)]
    return [Row("embed/token", "~shared.weight"), *stacks]


def _finish(fields: dict, unread: dict) -> None:
    fields["num_decoder_layers"] = unread.pop("num_decoder_layers", None) or 0
    kind = unread.pop("feed_forward_proj", "relu")
    need(isinstance(kind, str), f"feed_forward_proj={kind!r} must be a string")
    gated, name = kind.startswith("gated-"), kind.removeprefix("gated-")
    # By convention of the released checkpoints, this one name means the tanh form.
    name = "gelu_new" if kind == "gated-gelu" else name
    # Both are derived from it by the library, but where a file states them they decide.
    name, gated = unread.pop("dense_act_fn", name), unread.pop("is_gated_act", gated)
    need(name in ACTIVATIONS, f"feed_forward_proj={kind!r}: choose from {', '.join(ACTIVATIONS)}")
    need(isinstance(gated, bool), f"is_gated_act={gated!r} must be true or false")
    fields["gated"], fields["activation"] = gated, ACTIVATIONS[name]


def _finish_t5(fields: dict, unread: dict) -> None:
    _finish(fields, unread)
    tied = unread.pop("tie_word_embeddings", None)
    scaled = unread.pop("scale_decoder_outputs", tied is not False)
    fields["output_scale"] = fields["width"] ** -0.5 if scaled else 1.0


def _finish_write(config, out: dict) -> None:
    name = {"gelu_tanh": "gelu_new"}.get(config.activation, config.activation)
    out["dense_act_fn"], out["is_gated_act"] = name, config.gated
    name = "gelu" if config.gated and name == "gelu_new" else name
    out["feed_forward_proj"] = f"gated-{name}" if config.gated else name
    out["num_decoder_layers"] = config.num_decoder_layers


def _write_t5(config, out: dict) -> None:
    _finish_write(config, out)
    out["scale_decoder_outputs"] = out["tie_word_embeddings"] = config.output_scale != 1


def _write_mt5(config, out: dict) -> None:
    _finish_write(config, out)
    need(config.output_scale == 1, "mT5 does not scale its decoder's output")
    out["tie_word_embeddings"] = config.tied


def _keys(vocab: int, mlp: int, depth: int, heads: int) -> tuple[Key, ...]:
    dropouts = "embed_dropout attention_dropout residual_dropout mlp_dropout output_dropout"
    return (
        Key("vocab_size", "vocab_size", vocab),
        Key("d_model", "width", 512),
        Key("d_kv", "head_dim", 64),
        Key("d_ff", "mlp_width", mlp),
        Key("num_layers", "num_layers", depth),
        Key("num_heads", "num_heads", heads),
        Key("relative_attention_num_buckets", "relative_buckets", 32),
        Key("relative_attention_max_distance", "relative_max_distance", 128),
        Key("dropout_rate", dropouts, 0.1),
        Key("layer_norm_epsilon", "norm_epsilon", 1e-6),
        Key("classifier_dropout", "head_dropout", 0.0),
    )


T5 = Family(
    model_types={"t5": "T5"},
    model="encoder_decoder",
    prefix="transformer",
    # These classes call the backbone `transformer`; the others have no name for it.
    prefixed=("ForSequenceClassification", "ForTokenClassification"),
    keys=_keys(32_128, 2048, 6, 8),
    fixed={},
    constants=NO_BIAS
    | {"norm": "rmsnorm", "positions": "relative", "attention_scale": 1.0, "init": "t5"},
    classes={
        "Model": Head(),
        "EncoderModel": Head(model="encoder"),
        "ForConditionalGeneration": one_module("lm", "lm_head"),
        "ForSequenceClassification": Head(
            ("classification",),
            (
                Row("heads/pooler", "classification_head.dense"),
                Row("heads/classification", "classification_head.out_proj"),
            ),
            fields={"pooler": "dense"},
        ),
        "ForTokenClassification": TOKENS._replace(model="encoder"),
        "ForQuestionAnswering": ANSWERS,
    },
    rows=_rows,
    twins=(("~shared.weight", "~encoder.embed_tokens.weight", "~decoder.embed_tokens.weight"),),
    ignored=(r"EncDecAttention\.relative_attention_bias\.weight$",),
    unused=("initializer_factor", "n_positions", "is_decoder"),
    finish=_finish_t5,
    finish_write=_write_t5,
)

MT5 = dataclasses.replace(
    T5,
    model_types={"mt5": "MT5"},
    keys=_keys(250_112, 1024, 8, 6),
    unused=(*T5.unused, "tie_word_embeddings"),  # the tensors say it
    finish=_finish,
    finish_write=_write_mt5,
)


def _stack_bart(side: str) -> list[Row]:
    projections = "q_proj k_proj v_proj out_proj"
    names = {
        **attention("self_attn", projections),
        "attention_norm": "self_attn_layer_norm",
        **attention("encoder_attn", projections, "cross_attention"),
        "cross_attention_norm": "encoder_attn_layer_norm",
        "mlp/up": "fc1",
        "mlp/down": "fc2",
        "mlp_norm": "final_layer_norm",
    }
    return [
        Row(f"embed/{side}_position", f"~{side}.embed_positions.weight"),
        Row(f"embed/{side}_norm", f"~{side}.layernorm_embedding"),
        *layers(f"{side}/layers", f"~{side}.layers.{{n}}", names),
    ]


def _rows_bart(config) -> list[Row]:
    stacks = [*_stack_bart("encoder"), *_stack_bart("decoder")]
    return [Row("embed/token", "~shared.weight"), *stacks]


def _finish_bart(fields: dict, unread: dict) -> None:
    for key, ours in (("attention_heads", "num_heads"), ("ffn_dim", "mlp_width")):
        there = unread.pop(f"decoder_{key}", fields[ours])
        need(there == fields[ours], f"decoder_{key}={there!r} differs from encoder_{key}")
    if unread.pop("scale_embedding", False):
        fields["embed_scale"] = fields["width"] ** 0.5


def _write_bart(config, out: dict) -> None:
    out["decoder_attention_heads"] = config.num_heads
    out["decoder_ffn_dim"] = config.mlp_width
    need(config.embed_scale in (1.0, config.width**0.5), "embed_scale is neither 1 nor √width")
    out["scale_embedding"] = config.embed_scale != 1


_BART_SIZES = "vocab_size d_model encoder_layers encoder_attention_heads encoder_ffn_dim "
_BART_SIZES += "max_position_embeddings init_std"

# Lewis et al., 2019
BART = Family(
    model_types={"bart": "Bart"},
    model="encoder_decoder",
    prefix="model",
    keys=(
        *sizes(50_265, 1024, 12, 16, 4096, 1024, names=_BART_SIZES),
        Key("decoder_layers", "num_decoder_layers", 12),
        activation("activation_function", "gelu"),
        Key("dropout", "embed_dropout residual_dropout", 0.1),
        Key("attention_dropout", "attention_dropout", 0.0),
        Key("activation_dropout", "mlp_dropout", 0.0),
        Key("classifier_dropout", "head_dropout", 0.0),
    ),
    fixed={
        "tie_word_embeddings": (True,),
        **dict.fromkeys(("encoder_layerdrop", "decoder_layerdrop"), (0.0,)),
        # Of the first releases.
        **dict.fromkeys(("normalize_before", "add_final_layer_norm"), (False,)),
        **dict.fromkeys(("add_bias_logits", "static_position_embeddings"), (False,)),
        "normalize_embedding": (True,),
        "extra_pos_embeddings": (2,),
    },
    constants=BERT.constants | {"separate_positions": True, "position_offset": 2},
    classes={
        "Model": Head(),
        "ForConditionalGeneration": one_module("lm", "lm_head")._replace(
            zeros=("final_logits_bias",)
        ),
        **{end: T5.classes[end] for end in ("ForSequenceClassification", "ForQuestionAnswering")},
    },
    rows=_rows_bart,
    twins=T5.twins,
    unused=("num_hidden_layers", "kobart_version"),
    finish=_finish_bart,
    finish_write=_write_bart,
)
