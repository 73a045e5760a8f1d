"""What is read off the final hidden state; a model is built with the heads an objective names.

`lm` [B, L, V], `mlm` [B, P, V] (transform, then the tied table; on `target_positions` only),
`nsp` [B, 2], `classification` [B, C], `pooled` [B, D]. Logits are float32, and the padding rows of
the token table are cut off: they are in no sum and no loss.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxlm.errors import ConfigError, choose
from flaxlm.models.config import padded_vocab
from flaxlm.models.layers import ACTIVATIONS, Dense, Norm, aligned, dropout, dropout_words, product
from flaxlm.sharding import constrain

AXES = (
    (r"heads/(lm|mlm)/kernel$", ("embed", "vocab")),
    (r"heads/(lm|mlm)/bias$", ("vocab",)),
    (r"heads/(transform|pooler)/kernel$", ("embed", None)),
    (r"heads/(transform|pooler)/bias$", (None,)),
    (r"heads/(nsp|classification)/kernel$", ("embed", None)),
    (r"heads/(nsp|classification)/bias$", (None,)),
)

POOLED = ("pooled", "nsp", "classification")


class VocabularyOutput(nn.Module):
    """Logits over the vocabulary, from the token table if tied and from an own kernel if not."""

    config: object
    bias: bool

    @nn.compact
    def __call__(self, x: jax.Array, table_VD: jax.Array) -> jax.Array:
        """Return float32 logits [..., V] of x [..., D]; V counts no padding."""
        c = self.config
        rows = padded_vocab(c)
        if c.tied:
            kernel = table_VD.T
        else:
            std = c.width**-0.5 if c.init == "t5" else c.init_std
            kernel = self.param(
                "kernel", nn.initializers.normal(std), (c.width, rows), c.param_dtype
            )
        y = product(x.astype(c.dtype), kernel.astype(c.dtype), 1, jnp.float32)
        y = constrain(y, "batch", "length", "vocab")
        if self.bias:
            bias = self.param("bias", nn.initializers.zeros, (rows,), c.param_dtype)
            y += aligned(bias.astype(jnp.float32), y.ndim)
        return y[..., : c.vocab_size]


class Heads(nn.Module):
    """All heads of one model.

    `heads` is ((name, size), …), size 0 for the vocabulary or the width; `offers` are the names
    that the family has; `pool` is what stands for a sequence where `config.pooling` is empty:
    `first` (the first token, through BERT's pooler), `last` (the last real token, as it is) or
    `mean` (of the real tokens' final states).
    """

    config: object
    heads: tuple[tuple[str, int], ...]
    offers: tuple[str, ...]
    pool: str = "first"

    def setup(self):
        """Make the parts; see the class."""
        c = self.config
        names = dict(self.heads)
        for name in names:
            choose("head", name, self.offers)

        def dense(size):
            return Dense((c.width,), (size,), c.init_std, True, c.dtype, c.param_dtype)

        if "lm" in names:
            self.lm = VocabularyOutput(c, c.output_bias)
        if "mlm" in names:
            self.transform = dense(c.width)
            self.transform_norm = Norm(c)
            self.mlm = VocabularyOutput(c, True)
        if self.pooling == "first" and any(name in POOLED for name in names):
            self.pooler = dense(c.width)
        if "nsp" in names:
            self.nsp = dense(2)
        if "classification" in names:
            if names["classification"] < 1:
                raise ConfigError("head classification needs its number of classes")
            self.classification = dense(names["classification"])

    @property
    def pooling(self) -> str:
        """What stands for a sequence."""
        return self.config.pooling or self.pool

    def __call__(self, x_BLD, batch: dict, table_VD, train: bool = False) -> dict:
        """Return {head: output} of the final hidden state."""
        names = dict(self.heads)
        out = {}
        if "lm" in names:
            out["lm"] = self.language(x_BLD, table_VD)
        if "mlm" in names:
            out["mlm"] = self.masked(x_BLD, batch.get("target_positions"), table_VD)
        if any(name in POOLED for name in names):
            pooled_BD = self.pooled(x_BLD, batch.get("segment_ids"))
            if "pooled" in names:
                out["pooled"] = pooled_BD.astype(jnp.float32)
            rate = self.config.head_dropout
            words = dropout_words(self, train and rate > 0, 1)
            pooled_BD = dropout(pooled_BD, rate, None if words is None else words[0])
            for name in ("nsp", "classification"):
                if name in names:
                    out[name] = getattr(self, name)(pooled_BD).astype(jnp.float32)
        return out

    def language(self, x_BLD, table_VD) -> jax.Array:
        """Return next-token logits [B, L, V]."""
        scale = self.config.output_scale
        return self.lm(x_BLD if scale == 1 else x_BLD * jnp.asarray(scale, x_BLD.dtype), table_VD)

    def masked(self, x_BLD, target_positions, table_VD) -> jax.Array:
        """Return logits [B, P, V] on `target_positions` [B, P]; None: everywhere."""
        if target_positions is not None:
            x_BLD = jnp.take_along_axis(x_BLD, target_positions[..., None], axis=1, mode="clip")
        x_BPD = ACTIVATIONS[self.config.activation](self.transform(x_BLD))
        return self.mlm(self.transform_norm(x_BPD), table_VD)

    def pooled(self, x_BLD, segments_BL) -> jax.Array:
        """Return the vector [B, D] that stands for a sequence."""
        if self.pooling == "first":
            return jnp.tanh(self.pooler(x_BLD[:, 0]))
        if segments_BL is None:
            segments_BL = jnp.ones(x_BLD.shape[:2], jnp.int32)
        if self.pooling == "mean":
            real_BL = (segments_BL != 0).astype(jnp.float32)
            total_BD = jnp.einsum("bld,bl->bd", x_BLD.astype(jnp.float32), real_BL)
            mean_BD = total_BD / jnp.maximum(jnp.sum(real_BL, axis=1, keepdims=True), 1)
            return mean_BD.astype(x_BLD.dtype)
        index_L = jnp.arange(x_BLD.shape[1], dtype=jnp.int32)
        last_B = jnp.max(jnp.where(segments_BL != 0, index_L[None], 0), axis=1)
        return jnp.take_along_axis(x_BLD, last_B[:, None, None], axis=1, mode="clip")[:, 0]
