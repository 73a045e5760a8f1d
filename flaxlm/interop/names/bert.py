"""BERT (Devlin et al., 2018), RoBERTa, XLM-R (Liu et al., 2019), ELECTRA (Clark et al., 2020)."""

from flaxlm.interop.spec import Family, Head, Key, Row, activation, layers, need

KEYS = (
    Key("vocab_size", "vocab_size", 30_522),
    Key("hidden_size", "width", 768),
    Key("num_hidden_layers", "num_layers", 12),
    Key("num_attention_heads", "num_heads", 12),
    Key("intermediate_size", "mlp_width", 3072),
    activation("hidden_act", "gelu"),
    Key("hidden_dropout_prob", "embed_dropout residual_dropout", 0.1),
    Key("attention_probs_dropout_prob", "attention_dropout", 0.1),
    Key("max_position_embeddings", "max_length", 512),
    Key("type_vocab_size", "token_types", 2),
    Key("layer_norm_eps", "norm_epsilon", 1e-12),
    Key("initializer_range", "init_std", 0.02),
)
FIXED = {
    "position_embedding_type": ("absolute",),
    "tie_word_embeddings": (True,),
}
CONSTANTS = {"norm_position": "post", "embed_norm": True, "final_norm": False}


LAYER = {
    "attention/query": "attention.self.query",
    "attention/key": "attention.self.key",
    "attention/value": "attention.self.value",
    "attention/out": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "mlp/up": "intermediate.dense",
    "mlp/down": "output.dense",
    "mlp_norm": "output.LayerNorm",
}


def rows(
    config, path="~encoder.layer.{n}", layer=LAYER, projection="~embeddings_project"
) -> list[Row]:
    """Return the rows of the encoder; `layer` holds the names below `path`."""
    return [
        Row("embed/token", "~embeddings.word_embeddings.weight"),
        Row("embed/position", "~embeddings.position_embeddings.weight"),
        Row("embed/token_type", "~embeddings.token_type_embeddings.weight"),
        Row("embed/norm", "~embeddings.LayerNorm"),
        Row("embed/projection", projection),
        *layers("encoder/layers", path, layer),
    ]


def finish(fields: dict, rest: dict) -> None:
    """Read `classifier_dropout`, which is the hidden one where it is not given."""
    need(fields["token_types"] > 0, "type_vocab_size must be at least 1")
    given = rest.pop("classifier_dropout", None)
    fields["head_dropout"] = fields["residual_dropout"] if given is None else given


def _write_dropout(config, out: dict) -> None:
    out["classifier_dropout"] = config.head_dropout


POOLER = Row("heads/pooler", "~pooler.dense")
CLASSIFIER = Row("heads/classification", "classifier")
TOKENS = Head(("token_classification",), (Row("heads/token_classification", "classifier"),))
ANSWERS = Head(("question_answering",), (Row("heads/question_answering", "qa_outputs"),))
# The classifier's own dense layer stands where BERT's pooler does.
DENSE = (
    Row("heads/pooler", "classifier.dense"),
    Row("heads/classification", "classifier.out_proj"),
)
_MLM = (
    Row("heads/transform", "cls.predictions.transform.dense"),
    Row("heads/transform_norm", "cls.predictions.transform.LayerNorm"),
    Row("heads/mlm/kernel", "cls.predictions.decoder.weight"),
    Row("heads/mlm/bias", "cls.predictions.bias"),
)

BERT = Family(
    model_types={"bert": "Bert"},
    model="encoder",
    prefix="bert",
    keys=KEYS,
    fixed=FIXED,
    constants=CONSTANTS,
    classes={
        "Model": Head(("pooled",), (POOLER,)),
        "ForPreTraining": Head(
            ("mlm", "nsp"), (*_MLM, POOLER, Row("heads/nsp", "cls.seq_relationship"))
        ),
        "ForMaskedLM": Head(("mlm",), _MLM),
        "ForSequenceClassification": Head(("classification",), (POOLER, CLASSIFIER)),
        "ForTokenClassification": TOKENS,
        "ForQuestionAnswering": ANSWERS,
    },
    rows=rows,
    twins=(("cls.predictions.bias", "cls.predictions.decoder.bias"),),
    finish=finish,
    finish_write=_write_dropout,
)


def _finish_roberta(fields: dict, rest: dict) -> None:
    """Positions begin behind the padding id, whose row nothing reads."""
    finish(fields, rest)
    pad = rest.get("pad_token_id", 1)
    need(isinstance(pad, int) and 0 <= pad < 1000, f"pad_token_id={pad!r} is not a small number")
    fields["position_offset"] = pad + 1
    fields["max_length"] -= pad + 1


def _write_roberta(config, out: dict) -> None:
    _write_dropout(config, out)
    out["pad_token_id"] = config.position_offset - 1
    out["max_position_embeddings"] += config.position_offset


_ROBERTA_MLM = (
    Row("heads/transform", "lm_head.dense"),
    Row("heads/transform_norm", "lm_head.layer_norm"),
    Row("heads/mlm/kernel", "lm_head.decoder.weight"),
    Row("heads/mlm/bias", "lm_head.bias"),
)

ROBERTA = Family(
    model_types={"roberta": "Roberta", "xlm-roberta": "XLMRoberta"},
    model="encoder",
    prefix="roberta",
    keys=(Key("vocab_size", "vocab_size", 50_265), *KEYS[1:]),
    fixed=FIXED,
    constants=CONSTANTS | {"transform_activation": "gelu"},
    classes={
        "Model": Head(("pooled",), (POOLER,)),
        "ForMaskedLM": Head(("mlm",), _ROBERTA_MLM),
        "ForSequenceClassification": Head(("classification",), DENSE),
        "ForTokenClassification": TOKENS,
        "ForQuestionAnswering": ANSWERS,
    },
    rows=rows,
    twins=(("lm_head.bias", "lm_head.decoder.bias"),),
    finish=_finish_roberta,
    finish_write=_write_roberta,
)

_ELECTRA_MLM = (
    Row("heads/transform", "generator_predictions.dense"),
    Row("heads/transform_norm", "generator_predictions.LayerNorm"),
    Row("heads/mlm/kernel", "generator_lm_head.weight"),
    Row("heads/mlm/bias", "generator_lm_head.bias"),
)

ELECTRA = Family(
    model_types={"electra": "Electra"},
    model="encoder",
    prefix="electra",
    keys=(
        *KEYS[:1],
        Key("embedding_size", "embed_width", 128),
        Key("hidden_size", "width", 256),
        KEYS[2],
        Key("num_attention_heads", "num_heads", 4),
        Key("intermediate_size", "mlp_width", 1024),
        *KEYS[5:],
    ),
    fixed=FIXED,
    constants=CONSTANTS | {"transform_activation": "gelu", "pooler_activation": "gelu"},
    classes={
        "Model": Head(),
        "ForPreTraining": Head(
            ("discriminator",),
            (
                Row("heads/discriminator_dense", "discriminator_predictions.dense"),
                Row("heads/discriminator", "discriminator_predictions.dense_prediction"),
            ),
        ),
        "ForMaskedLM": Head(("mlm",), _ELECTRA_MLM),
        "ForSequenceClassification": Head(("classification",), DENSE),
        "ForTokenClassification": TOKENS,
        "ForQuestionAnswering": ANSWERS,
    },
    rows=rows,
    unused=("generator_size",),
    finish=finish,
    finish_write=_write_dropout,
)
