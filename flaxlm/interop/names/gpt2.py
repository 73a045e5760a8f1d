"""GPT-2 (Radford et al., 2019)."""

from flaxlm.interop.spec import JOINING, Family, Head, Key, Layout, Row, activation, layers


def _columns(part: int = 0, parts: int = 1, inputs: int = 1) -> Layout:
    return Layout("columns", part, parts, inputs)


def _rows(config) -> list[Row]:
    fused = "attn.c_attn"
    return [
        Row("embed/token", "~wte.weight"),
        Row("embed/position", "~wpe.weight"),
        *layers(
            "decoder/layers",
            "~h.{n}",
            {
                "attention_norm": "ln_1",
                "attention/query": (fused, _columns(0, 3)),
                "attention/key": (fused, _columns(1, 3)),
                "attention/value": (fused, _columns(2, 3)),
                "attention/out": ("attn.c_proj", _columns(inputs=JOINING.inputs)),
                "mlp_norm": "ln_2",
                "mlp/up": ("mlp.c_fc", _columns()),
                "mlp/down": ("mlp.c_proj", _columns()),
            },
        ),
        Row("decoder/final_norm", "~ln_f"),
    ]


def _finish(fields: dict, rest: dict) -> None:
    if not rest.pop("scale_attn_weights", True):
        fields["attention_scale"] = 1.0
    if not fields["mlp_width"]:
        fields["mlp_width"] = 4 * fields["width"]


def _finish_write(config, out: dict) -> None:
    out["scale_attn_weights"] = config.scale != 1


GPT2 = Family(
    model_types={"gpt2": "GPT2"},
    model="decoder",
    prefix="transformer",
    keys=(
        Key("vocab_size", "vocab_size", 50_257),
        Key("n_positions", "max_length", 1024),
        Key("n_embd", "width", 768),
        Key("n_layer", "num_layers", 12),
        Key("n_head", "num_heads", 12),
        Key("n_inner", "mlp_width", None, lambda n: n or 0),
        activation("activation_function", "gelu_new"),
        Key("resid_pdrop", "residual_dropout", 0.1),
        Key("embd_pdrop", "embed_dropout", 0.1),
        Key("attn_pdrop", "attention_dropout", 0.1),
        Key("layer_norm_epsilon", "norm_epsilon", 1e-5),
        Key("initializer_range", "init_std", 0.02),
        Key("tie_word_embeddings", "tied", True),
    ),
    fixed={"scale_attn_by_inverse_layer_idx": (False,)},
    constants={"scale_residual_init": True, "classification_bias": False},
    classes={
        "Model": Head(),
        "LMHeadModel": Head(("lm",), (Row("heads/lm", "lm_head"),)),
        "ForSequenceClassification": Head(
            ("classification",), (Row("heads/classification", "score"),)
        ),
        "ForTokenClassification": Head(
            ("token_classification",), (Row("heads/token_classification", "classifier"),)
        ),
        "ForQuestionAnswering": Head(
            ("question_answering",), (Row("heads/question_answering", "qa_outputs"),)
        ),
    },
    rows=_rows,
    unused=("reorder_and_upcast_attn", "is_decoder"),
    finish=_finish,
    finish_write=_finish_write,
)
