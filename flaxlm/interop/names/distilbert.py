"""DistilBERT (Sanh et al., 2019)."""

from flaxlm.interop.names.bert import ANSWERS, CLASSIFIER, CONSTANTS, TOKENS
from flaxlm.interop.spec import Family, Head, Key, Row, activation, layers


def _rows(config) -> list[Row]:
    return [
        Row("embed/token", "~embeddings.word_embeddings.weight"),
        Row("embed/position", "~embeddings.position_embeddings.weight"),
        Row("embed/norm", "~embeddings.LayerNorm"),
        *layers(
            "encoder/layers",
            "~transformer.layer.{n}",
            {
                "attention/query": "attention.q_lin",
                "attention/key": "attention.k_lin",
                "attention/value": "attention.v_lin",
                "attention/out": "attention.out_lin",
                "attention_norm": "sa_layer_norm",
                "mlp/up": "ffn.lin1",
                "mlp/down": "ffn.lin2",
                "mlp_norm": "output_layer_norm",
            },
        ),
    ]


DISTILBERT = Family(
    model_types={"distilbert": "DistilBert"},
    model="encoder",
    prefix="distilbert",
    keys=(
        Key("vocab_size", "vocab_size", 30_522),
        Key("dim", "width", 768),
        Key("n_layers", "num_layers", 6),
        Key("n_heads", "num_heads", 12),
        Key("hidden_dim", "mlp_width", 3072),
        activation("activation", "gelu"),
        Key("dropout", "embed_dropout residual_dropout", 0.1),
        Key("attention_dropout", "attention_dropout", 0.1),
        Key("seq_classif_dropout", "head_dropout", 0.2),
        Key("max_position_embeddings", "max_length", 512),
        Key("initializer_range", "init_std", 0.02),
    ),
    fixed={"tie_word_embeddings": (True,)},
    constants=CONSTANTS | {"norm_epsilon": 1e-12, "pooler_activation": "relu"},
    classes={
        "Model": Head(),
        "ForMaskedLM": Head(
            ("mlm",),
            (
                Row("heads/transform", "vocab_transform"),
                Row("heads/transform_norm", "vocab_layer_norm"),
                Row("heads/mlm/kernel", "vocab_projector.weight"),
                Row("heads/mlm/bias", "vocab_projector.bias"),
            ),
        ),
        "ForSequenceClassification": Head(
            ("classification",), (Row("heads/pooler", "pre_classifier"), CLASSIFIER)
        ),
        "ForTokenClassification": TOKENS,
        "ForQuestionAnswering": ANSWERS,
    },
    rows=_rows,
    # The table is stored, whether or not it began as sinusoids.
    unused=("sinusoidal_pos_embds", "qa_dropout"),
)
