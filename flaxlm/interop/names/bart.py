"""BART (Lewis et al., 2019)."""

from flaxlm.interop.names.t5 import T5
from flaxlm.interop.spec import Family, Head, Key, Row, activation, layers, need


def _stack(side: str) -> list[Row]:
    names = {"mlp/up": "fc1", "mlp/down": "fc2", "mlp_norm": "final_layer_norm"}
    for ours, theirs in (("attention", "self_attn"), ("cross_attention", "encoder_attn")):
        names |= {
            f"{ours}/query": f"{theirs}.q_proj",
            f"{ours}/key": f"{theirs}.k_proj",
            f"{ours}/value": f"{theirs}.v_proj",
            f"{ours}/out": f"{theirs}.out_proj",
            f"{ours}_norm": f"{theirs}_layer_norm",
        }
    return [
        Row(f"embed/{side}_position", f"~{side}.embed_positions.weight"),
        Row(f"embed/{side}_norm", f"~{side}.layernorm_embedding"),
        *layers(f"{side}/layers", f"~{side}.layers.{{n}}", names),
    ]


def _rows(config) -> list[Row]:
    return [Row("embed/token", "~shared.weight"), *_stack("encoder"), *_stack("decoder")]


def _finish(fields: dict, rest: dict) -> None:
    for key, ours in (("attention_heads", "num_heads"), ("ffn_dim", "mlp_width")):
        there = rest.pop(f"decoder_{key}", fields[ours])
        need(there == fields[ours], f"decoder_{key}={there!r} differs from encoder_{key}")
    if rest.pop("scale_embedding", False):
        fields["embed_scale"] = fields["width"] ** 0.5


def _finish_write(config, out: dict) -> None:
    out["decoder_attention_heads"] = config.num_heads
    out["decoder_ffn_dim"] = config.mlp_width
    need(config.embed_scale in (1.0, config.width**0.5), "embed_scale is neither 1 nor √width")
    out["scale_embedding"] = config.embed_scale != 1


BART = Family(
    model_types={"bart": "Bart"},
    model="encoder_decoder",
    prefix="model",
    keys=(
        Key("vocab_size", "vocab_size", 50_265),
        Key("d_model", "width", 1024),
        Key("encoder_layers", "num_layers", 12),
        Key("decoder_layers", "num_decoder_layers", 12),
        Key("encoder_attention_heads", "num_heads", 16),
        Key("encoder_ffn_dim", "mlp_width", 4096),
        activation("activation_function", "gelu"),
        Key("max_position_embeddings", "max_length", 1024),
        Key("dropout", "embed_dropout residual_dropout", 0.1),
        Key("attention_dropout", "attention_dropout", 0.0),
        Key("activation_dropout", "mlp_dropout", 0.0),
        Key("classifier_dropout", "head_dropout", 0.0),
        Key("init_std", "init_std", 0.02),
    ),
    fixed={
        "tie_word_embeddings": (True,),
        "encoder_layerdrop": (0.0,),
        "decoder_layerdrop": (0.0,),
        # Of the first releases.
        "normalize_before": (False,),
        "normalize_embedding": (True,),
        "add_final_layer_norm": (False,),
        "add_bias_logits": (False,),
        "static_position_embeddings": (False,),
        "extra_pos_embeddings": (2,),
    },
    constants={
        "norm_position": "post",
        "embed_norm": True,
        "final_norm": False,
        "separate_positions": True,
        "position_offset": 2,
    },
    classes={
        "Model": Head(),
        "ForConditionalGeneration": Head(
            ("lm",), (Row("heads/lm", "lm_head"),), zeros=("final_logits_bias",)
        ),
        **{end: T5.classes[end] for end in ("ForSequenceClassification", "ForQuestionAnswering")},
    },
    rows=_rows,
    twins=T5.twins,
    unused=("num_hidden_layers", "kobart_version"),
    finish=_finish,
    finish_write=_finish_write,
)
