"""What is read off the final hidden state; a model is built with the heads an objective names.

`lm` [B, L, V], `mlm` [B, P, V] (transform, then the tied table), both on `target_positions` only
where the batch has them, `nsp` [B, 2], `classification` [B, C], `pooled` [B, D],
`token_classification` [B, L, C], `question_answering` [B, L, 2] (begin and end of the answer),
`discriminator` [B, L] (whether a token was replaced; ELECTRA, Clark et al., 2020). Logits are
float32, and the padding rows of the token table are cut off: they enter no sum and no loss.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxlm.errors import ConfigError, choose
from flaxlm.models import layers
from flaxlm.models.config import padded_vocab
from flaxlm.sharding import constrain

POOLED = ("pooled", "nsp", "classification")
TOKENWISE = ("token_classification", "question_answering")
_DENSE = ("transform", "pooler", "discriminator_dense", *POOLED[1:], *TOKENWISE, "discriminator")
AXES = (
    *layers.kernel_axes(r"heads/(lm|mlm)", ("embed",), ("vocab",)),
    *layers.kernel_axes(rf"heads/({'|'.join(_DENSE)})", ("embed",), (None,)),
)
# Which fields of a config the heads read, of those that nothing else does.
READ_BY = {
    "output_(scale|softcap|bias)": {"lm"},
    "tied": {"lm", "mlm"},
    "mlm_bias": {"mlm"},
    "transform_.*": {"mlm", *POOLED, *TOKENWISE},
    "pooling|pooler_activation": {*POOLED},
    "pooler": {*POOLED, *TOKENWISE},
    "classification_bias": {"classification"},
}
POOLINGS = {"mean": "mean", "cls": "first", "last": "last"}  # the users' word: `pool`'s


class VocabularyOutput(nn.Module):
    """Logits over the vocabulary, from the token table if tied, else from a kernel of its own."""

    config: object
    bias: bool

    @nn.compact
    def __call__(self, x: jax.Array, table_VD: jax.Array) -> jax.Array:
        """Return float32 logits [..., V] of x [..., D]; V counts no padding."""
        c = self.config
        rows = padded_vocab(c)
        if c.tied:
            kernel = table_VD.T
            if len(kernel) != x.shape[-1]:
                raise ConfigError(
                    f"this head reads states of width {x.shape[-1]}, and the table that it is tied "
                    f"to has model.embed_width={len(kernel)}; set model.tied=False"
                )
        else:
            init = nn.initializers.normal(c.width**-0.5 if c.init == "t5" else c.init_std)
            kernel = layers.parameter(self, "kernel", init, (x.shape[-1], rows), c.param_dtype)
        y = layers.projected(self, x.astype(c.dtype), kernel, 1, jnp.float32)
        y = constrain(y, "batch", "length", "vocab")
        if self.bias:
            bias = layers.parameter(self, "bias", nn.initializers.zeros, (rows,), c.param_dtype)
            y += layers.aligned(bias.astype(jnp.float32), y.ndim)
        return y[..., : c.vocab_size]


class Heads(nn.Module):
    """All heads of one model.

    `heads` is ((name, size), …), size 0 for the vocabulary or the width; `offers` are the names
    that the family has; `pool` says which state represents a sequence where `config.pooling` is
    empty: that of the `first` token, of the `last` real token, or the `mean` of all real tokens'.
    It then passes through the pooler: `dense` (BERT's; the default of `first`), `transform` (the
    masked-LM head's, which then precedes the tokenwise heads as well) or `none`.
    """

    config: object
    heads: tuple[tuple[str, int], ...]
    offers: tuple[str, ...]
    pool: str = "first"

    def setup(self):
        """Make the parts; see the class."""
        c = self.config
        names = dict(self.heads)
        for name, size in names.items():
            choose("head", name, self.offers)
            if name.endswith("classification") and size < 1:
                raise ConfigError(f"head {name} needs a number of classes")

        def dense(size, bias=True):
            return layers.Dense(c, (c.width,), (size,), c.init_std, bias)

        if "lm" in names:
            self.lm = VocabularyOutput(c, c.output_bias)
        pooled = any(name in POOLED for name in names)
        read = pooled or any(name in TOKENWISE for name in names)
        self.pooling = pooled and (c.pooling or self.pool)
        self.pooler_kind = read and (c.pooler or ("dense" if self.pooling == "first" else "none"))
        if "mlm" in names or (read and self.pooler_kind == "transform"):
            self.transform = dense(c.embed_width, c.transform_bias)
            self.transform_norm = layers.Norm(c)
        if "mlm" in names:
            self.mlm = VocabularyOutput(c, c.mlm_bias)
        if pooled and self.pooler_kind == "dense":
            self.pooler = dense(c.width)
        if "discriminator" in names:
            self.discriminator_dense = dense(c.width)
        sizes = names | {"nsp": 2, "question_answering": 2, "discriminator": 1}
        for name in ("nsp", "classification", *TOKENWISE, "discriminator"):
            if name in names:
                bias = c.classification_bias if name == "classification" else True
                setattr(self, name, dense(sizes[name], bias))

    def __call__(self, x_BLD, batch: dict, table_VD, train: bool = False) -> dict:
        """Return {head: output} of the final hidden state."""
        names, out = dict(self.heads), {}
        if "lm" in names:
            out["lm"] = self.language(chosen(x_BLD, batch.get("target_positions")), table_VD)
        if "mlm" in names:
            states = self.transformed(chosen(x_BLD, batch.get("target_positions")))
            out["mlm"] = self.mlm(states, table_VD)
        if "discriminator" in names:
            hidden_BLD = layers.ACTIVATIONS[self.config.activation](self.discriminator_dense(x_BLD))
            out["discriminator"] = self.discriminator(hidden_BLD)[..., 0].astype(jnp.float32)
        rate = self.config.head_dropout
        word = layers.dropout_words(self, train and rate > 0)[0]
        if any(name in POOLED for name in names):
            pooled_BD = self.pooled(x_BLD, batch.get("segment_ids"))
            if "pooled" in names:
                out["pooled"] = pooled_BD.astype(jnp.float32)
            pooled_BD = layers.dropout(pooled_BD, rate, word)
            for name in ("nsp", "classification"):
                if name in names:
                    out[name] = getattr(self, name)(pooled_BD).astype(jnp.float32)
        if any(name in TOKENWISE for name in names):
            if self.pooler_kind == "transform":
                x_BLD = self.transformed(x_BLD)
            x_BLD = layers.dropout(x_BLD, rate, word)
            for name in TOKENWISE:
                if name in names:
                    out[name] = getattr(self, name)(x_BLD).astype(jnp.float32)
        return out

    def language(self, x_BLD, table_VD) -> jax.Array:
        """Return next-token logits [..., V] of states [..., D]."""
        c = self.config
        scale, cap = c.output_scale, c.output_softcap
        y = self.lm(x_BLD if scale == 1 else x_BLD * jnp.asarray(scale, x_BLD.dtype), table_VD)
        return cap * jnp.tanh(y / cap) if cap else y

    def transformed(self, x: jax.Array) -> jax.Array:
        """Return the masked-LM head's dense layer, activation and norm of x [..., D]."""
        c = self.config
        act = layers.ACTIVATIONS[c.transform_activation or c.activation]
        return self.transform_norm(act(self.transform(x)))

    def pooled(self, x_BLD, segments_BL) -> jax.Array:
        """Return the vector [B, D] that represents a sequence."""
        x_BD = pool(x_BLD, segments_BL, self.pooling)
        if self.pooler_kind == "dense":
            return layers.ACTIVATIONS[self.config.pooler_activation](self.pooler(x_BD))
        return self.transformed(x_BD) if self.pooler_kind == "transform" else x_BD


def chosen(x_BLD: jax.Array, target_positions: jax.Array | None) -> jax.Array:
    """Return the states [B, P, D] on `target_positions` [B, P]; None: everywhere."""
    if target_positions is None:
        return x_BLD
    return jnp.take_along_axis(x_BLD, target_positions[..., None], axis=1, mode="clip")


def pool(x_BLD: jax.Array, segments_BL: jax.Array | None, pooling: str) -> jax.Array:
    """Return [B, D]: the `first` token, the `last` real one, or the `mean` of the real ones."""
    if pooling == "first":
        return x_BLD[:, 0]
    if segments_BL is None:
        segments_BL = jnp.ones(x_BLD.shape[:2], jnp.int32)
    if pooling == "mean":
        real_BL = (segments_BL != 0).astype(jnp.float32)
        total_BD = jnp.einsum("bld,bl->bd", x_BLD.astype(jnp.float32), real_BL)
        mean_BD = total_BD / jnp.maximum(jnp.sum(real_BL, axis=1, keepdims=True), 1)
        return mean_BD.astype(x_BLD.dtype)
    index_L = jnp.arange(x_BLD.shape[1], dtype=jnp.int32)
    last_B = jnp.max(jnp.where(segments_BL != 0, index_L[None], 0), axis=1)
    return jnp.take_along_axis(x_BLD, last_B[:, None, None], axis=1, mode="clip")[:, 0]
