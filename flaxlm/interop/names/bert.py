"""BERT (Devlin et al., 2018) and what is built alike: RoBERTa, ELECTRA, DistilBERT, ALBERT."""

import dataclasses
import functools

from flaxlm.interop.patterns import ANSWERS, TOKENS, attention, layers, masked_lm
from flaxlm.interop.spec import Family, Head, Key, Row, activation, need, sizes

_DROPOUTS = (
    Key("hidden_dropout_prob", "embed_dropout residual_dropout", 0.1),
    Key("attention_probs_dropout_prob", "attention_dropout", 0.1),
)
_FACTORISED = Key("embedding_size", "embed_width", 128)
_TYPES = Key("type_vocab_size", "token_types", 2)
_EPSILON = Key("layer_norm_eps", "norm_epsilon", 1e-12)
_KEYS = (activation("hidden_act", "gelu"), *_DROPOUTS, _TYPES, _EPSILON)
_CONSTANTS = {"norm_position": "post", "embed_norm": True, "final_norm": False}
_FIXED = {"position_embedding_type": ("absolute",), "tie_word_embeddings": (True,)}
_LAYER = attention("attention", "self.query self.key self.value output.dense") | {
    "attention_norm": "attention.output.LayerNorm",
    "mlp/up": "intermediate.dense",
    "mlp/down": "output.dense",
    "mlp_norm": "output.LayerNorm",
}


def _rows(
    config, path="~encoder.layer.{n}", layer=_LAYER, projection="~embeddings_project"
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


def _finish(fields: dict, unread: dict) -> None:
    """Read `classifier_dropout`, which is the hidden one where it is not given."""
    dropout = unread.pop("classifier_dropout", None)
    fields["head_dropout"] = fields["residual_dropout"] if dropout is None else dropout


def _finish_write(config, out: dict) -> None:
    out["classifier_dropout"] = config.head_dropout


_POOLER = Row("heads/pooler", "~pooler.dense")
CLASSIFIER = Row("heads/classification", "classifier")
# The classifier's own dense layer stands where BERT's pooler does.
_DENSE = Head(
    ("classification",),
    (Row("heads/pooler", "classifier.dense"), Row("heads/classification", "classifier.out_proj")),
)
_OTHERS = {"ForTokenClassification": TOKENS, "ForQuestionAnswering": ANSWERS}
_MLM = masked_lm(
    "cls.predictions.transform.dense",
    "cls.predictions.transform.LayerNorm",
    "cls.predictions.decoder.weight",
    "cls.predictions.bias",
)

BERT = Family(
    model_types={"bert": "Bert"},
    model="encoder",
    prefix="bert",
    keys=(*sizes(30_522, 768, 12, 12, 3072, 512), *_KEYS),
    fixed=_FIXED,
    constants=_CONSTANTS,
    classes={
        "Model": Head(("pooled",), (_POOLER,)),
        "ForPreTraining": Head(
            ("mlm", "nsp"), (*_MLM.rows, _POOLER, Row("heads/nsp", "cls.seq_relationship"))
        ),
        "ForMaskedLM": _MLM,
        "ForSequenceClassification": Head(("classification",), (_POOLER, CLASSIFIER)),
        **_OTHERS,
    },
    rows=_rows,
    twins=(("cls.predictions.bias", "cls.predictions.decoder.bias"),),
    finish=_finish,
    finish_write=_finish_write,
)


def _finish_roberta(fields: dict, unread: dict) -> None:
    """Positions begin behind the padding id, whose row nothing reads."""
    _finish(fields, unread)
    pad = unread.get("pad_token_id", 1)
    need(isinstance(pad, int) and 0 <= pad < 1000, f"pad_token_id={pad!r} is not a small number")
    fields["position_offset"] = pad + 1
    fields["max_length"] -= pad + 1


def _write_roberta(config, out: dict) -> None:
    _finish_write(config, out)
    out["pad_token_id"] = config.position_offset - 1
    out["max_position_embeddings"] += config.position_offset


ROBERTA = dataclasses.replace(
    BERT,
    model_types={"roberta": "Roberta", "xlm-roberta": "XLMRoberta"},
    prefix="roberta",
    keys=(*sizes(50_265, 768, 12, 12, 3072, 512), *_KEYS),
    constants=_CONSTANTS | {"transform_activation": "gelu"},
    classes={
        "Model": Head(("pooled",), (_POOLER,)),
        "ForMaskedLM": masked_lm(
            "lm_head.dense", "lm_head.layer_norm", "lm_head.decoder.weight", "lm_head.bias"
        ),
        "ForSequenceClassification": _DENSE,
        **_OTHERS,
    },
    twins=(("lm_head.bias", "lm_head.decoder.bias"),),
    finish=_finish_roberta,
    finish_write=_write_roberta,
)

ELECTRA = dataclasses.replace(
    BERT,
    model_types={"electra": "Electra"},
    prefix="electra",
    keys=(*sizes(30_522, 256, 12, 4, 1024, 512), _FACTORISED, *_KEYS),
    constants=_CONSTANTS | {"transform_activation": "gelu", "pooler_activation": "gelu"},
    classes={
        "Model": Head(),
        "ForPreTraining": Head(
            ("discriminator",),
            (
                Row("heads/discriminator_dense", "discriminator_predictions.dense"),
                Row("heads/discriminator", "discriminator_predictions.dense_prediction"),
            ),
        ),
        "ForMaskedLM": masked_lm(
            "generator_predictions.dense",
            "generator_predictions.LayerNorm",
            "generator_lm_head.weight",
            "generator_lm_head.bias",
        ),
        "ForSequenceClassification": _DENSE,
        **_OTHERS,
    },
    twins=(),
    unused=("generator_size",),
)


def _rows_distilbert(config) -> list[Row]:
    names = attention("attention", "q_lin k_lin v_lin out_lin") | {
        "attention_norm": "sa_layer_norm",
        "mlp/up": "ffn.lin1",
        "mlp/down": "ffn.lin2",
        "mlp_norm": "output_layer_norm",
    }
    return [
        Row("embed/token", "~embeddings.word_embeddings.weight"),
        Row("embed/position", "~embeddings.position_embeddings.weight"),
        Row("embed/norm", "~embeddings.LayerNorm"),
        *layers("encoder/layers", "~transformer.layer.{n}", names),
    ]


_DISTILBERT_SIZES = "vocab_size dim n_layers n_heads hidden_dim max_position_embeddings "
_DISTILBERT_SIZES += "initializer_range"

DISTILBERT = Family(
    model_types={"distilbert": "DistilBert"},
    model="encoder",
    prefix="distilbert",
    keys=(
        *sizes(30_522, 768, 6, 12, 3072, 512, names=_DISTILBERT_SIZES),
        activation("activation", "gelu"),
        Key("dropout", "embed_dropout residual_dropout", 0.1),
        Key("attention_dropout", "attention_dropout", 0.1),
        Key("seq_classif_dropout", "head_dropout", 0.2),
    ),
    fixed={"tie_word_embeddings": (True,)},
    constants=_CONSTANTS | {"norm_epsilon": 1e-12, "pooler_activation": "relu"},
    classes={
        "Model": Head(),
        "ForMaskedLM": masked_lm(
            "vocab_transform", "vocab_layer_norm", "vocab_projector.weight", "vocab_projector.bias"
        ),
        "ForSequenceClassification": Head(
            ("classification",), (Row("heads/pooler", "pre_classifier"), CLASSIFIER)
        ),
        **_OTHERS,
    },
    rows=_rows_distilbert,
    # The table is stored, whether or not it began as sinusoids.
    unused=("sinusoidal_pos_embds", "qa_dropout"),
)


def _finish_albert(fields: dict, unread: dict) -> None:
    need(
        fields["embed_width"] != fields["width"],
        "embedding_size equal to hidden_size still has a projection, which is not supported",
    )


_POOLER_ALBERT = Row("heads/pooler", "~pooler")
_MLM_ALBERT = masked_lm(
    "predictions.dense", "predictions.LayerNorm", "predictions.decoder.weight", "predictions.bias"
)

# ALBERT (Lan et al., 2019): one layer applied repeatedly, and a factorised embedding.
ALBERT = Family(
    model_types={"albert": "Albert"},
    model="encoder",
    prefix="albert",
    keys=(
        *sizes(30_000, 4096, 12, 64, 16_384, 512),
        *(_FACTORISED, activation("hidden_act", "gelu_new")),
        *(key._replace(default=0.0) for key in _DROPOUTS),
        Key("classifier_dropout_prob", "head_dropout", 0.1),
        *(_TYPES, _EPSILON),
    ),
    fixed=_FIXED | {"num_hidden_groups": (1,), "inner_group_num": (1,)},
    constants=_CONSTANTS | {"share_layers": True},
    classes={
        "Model": Head(("pooled",), (_POOLER_ALBERT,)),
        "ForPreTraining": Head(
            ("mlm", "nsp"),
            (*_MLM_ALBERT.rows, _POOLER_ALBERT, Row("heads/nsp", "sop_classifier.classifier")),
        ),
        "ForMaskedLM": _MLM_ALBERT,
        "ForSequenceClassification": Head(("classification",), (_POOLER_ALBERT, CLASSIFIER)),
        **_OTHERS,
    },
    rows=functools.partial(
        _rows,
        path="~encoder.albert_layer_groups.0.albert_layers.0",
        layer=attention("attention", "query key value dense")
        | {
            "attention_norm": "attention.LayerNorm",
            "mlp/up": "ffn",
            "mlp/down": "ffn_output",
            "mlp_norm": "full_layer_layer_norm",
        },
        projection="~encoder.embedding_hidden_mapping_in",
    ),
    twins=(("predictions.bias", "predictions.decoder.bias"),),
    unused=("gap_size", "net_structure_type", "down_scale_factor", "num_memory_blocks"),
    finish=_finish_albert,
)
