"""The one Block and the one Stack under all three families."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jax.ad_checkpoint import checkpoint_name

from flaxlm.models import attention
from flaxlm.models.attention import Attention, RelativeBias, Scores
from flaxlm.models.config import TransformerConfig
from flaxlm.models.layers import MLP, Norm, dropout, dropout_words
from flaxlm.sharding import constrain

KEPT = ("residual", "attention", "projection")

# What the backward pass keeps instead of computing again; `none` keeps everything. `cheap` keeps
# what went through a matrix product, and computes norms, activations and dropout masks again.
REMAT = {
    "cheap": jax.checkpoint_policies.save_only_these_names(*KEPT),
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}

NO_WINDOW = 2**30


@struct.dataclass
class Context:
    """What every layer reads and none changes."""

    scores: Scores
    cross_scores: Scores | None = None
    rotary: tuple[jax.Array, jax.Array] | None = None  # (cos, sin) [B, L, 1, K / 2]
    memory: jax.Array | None = None  # encoder output [B, M, D]
    index: jax.Array | None = None  # cached decoding: where in the cache this token goes


class Block(nn.Module):
    """Attention, cross-attention if asked for, feed-forward, each with a residual and a norm."""

    config: TransformerConfig
    cross: bool = False
    keep: bool = False  # return keys and values, for a cache
    train: bool = False
    depth: int = 1  # of the stack, for the initial scale of residual outputs

    @nn.compact
    def __call__(self, x_BLD, layer, context: Context):
        """Return x_BLD after this layer and {name: new keys or values}.

        `layer` = (window or None, this layer's cache or None).
        """
        c = self.config
        window, cache = layer
        words = dropout_words(self, self.train, 6)
        words = [None] * 6 if words is None else words
        out_scale = (2 * self.depth) ** -0.5 if c.scale_residual_init else 1.0
        kept = {}

        def residual(name, part, word, x):
            norm = Norm(c, name=f"{name}_norm")
            if c.norm_position == "pre":
                x = x + dropout(part(norm(x)), c.residual_dropout, word)
                return checkpoint_name(x, "residual")
            x = x + dropout(part(x), c.residual_dropout, word)
            return norm(checkpoint_name(x, "residual"))

        def self_attention(x):
            module = Attention(c, out_scale, name="attention")
            key, value = module.keys_values(x, context.rotary)
            kept.update(key=key, value=value)
            if cache is not None:
                key = _put(cache["key"], key, context.index)
                value = _put(cache["value"], value, context.index)
            return module(
                x, key, value, context.scores, rotary=context.rotary, window=window, words=words[0]
            )

        def cross_attention(x):
            module = Attention(c, out_scale, name="cross_attention")
            if cache is not None:
                key, value = cache["cross_key"], cache["cross_value"]
            else:
                key, value = module.keys_values(context.memory)
                kept.update(cross_key=key, cross_value=value)
            return module(x, key, value, context.cross_scores, words=words[2])

        x_BLD = residual("attention", self_attention, words[1], x_BLD)
        if self.cross:
            x_BLD = residual("cross_attention", cross_attention, words[3], x_BLD)
        mlp = MLP(c, out_scale, name="mlp")
        x_BLD = residual("mlp", lambda x: mlp(x, words[4]), words[5], x_BLD)
        x_BLD = constrain(x_BLD, "batch", "length", "embed")
        return x_BLD, kept if self.keep else None


def _put(cached_BMHK, new_BLHK, index):
    return jax.lax.dynamic_update_slice_in_dim(
        cached_BMHK, new_BLHK.astype(cached_BMHK.dtype), index, axis=1
    )


class Stack(nn.Module):
    """N blocks as one scanned block with stacked parameters, and the final norm.

    Scanned or unrolled (`scan_layers=False`), the parameters are the same tree.
    """

    config: TransformerConfig
    num_layers: int
    causal: bool
    cross: bool = False

    @nn.compact
    def __call__(
        self,
        x_BLD: jax.Array,
        positions_BL: jax.Array,
        segments_BL: jax.Array | None = None,
        *,
        prefix_mask=None,
        memory=None,
        memory_segments=None,
        cache=None,
        keep: bool = False,
        train: bool = False,
    ):
        """Return hidden x_BLD after the final norm, and new keys and values.

        Args:
          x_BLD: embedded tokens; with `cache`, of the one token that is decoded.
          positions_BL: int32, from 0 in every document.
          segments_BL: int32, 0 on padding; None: one document a row, no padding.
          prefix_mask: int32 [B, L], 1 on tokens that all of their document sees.
          memory, memory_segments: encoder output [B, M, D] and its segments, if `cross`.
          cache: of `cache.py`, for one step of decoding.
          keep: whether to return keys and values of all layers, [N, B, L, H, K] each.
          train: dropout on.
        """
        c = self.config
        if cache is None:
            index, keys = None, segments_BL
            distance = attention.distances(x_BLD.shape[1], x_BLD.shape[1])
        else:
            index, keys = cache["index"], cache["segment_ids"]
            distance = attention.distances(1, keys.shape[1], index)
        scores = Scores(
            mask=attention.visibility(distance, segments_BL, keys, self.causal, prefix_mask),
            distance=distance if any(c.windows) else None,
        )
        if c.positions == "relative":
            scores = scores.replace(
                relative=RelativeBias(c, self.causal, name="relative")(distance)
            )
        context = Context(scores=scores, memory=memory, index=index)
        if c.positions == "rotary":
            context = context.replace(rotary=attention.rotary_table(positions_BL, c))
        if self.cross:
            context = context.replace(
                cross_scores=Scores(
                    mask=attention.visibility(None, segments_BL, memory_segments, causal=False)
                )
            )
        layers_cache = None if cache is None else cache["layers"]
        x_BLD, kept = self.blocks(keep, train)(x_BLD, (self.windows(), layers_cache), context)
        if c.final_norm:
            x_BLD = Norm(c, name="final_norm")(x_BLD)
        words = dropout_words(self, train and c.output_dropout > 0, 1)
        return dropout(x_BLD, c.output_dropout, None if words is None else words[0]), kept

    def blocks(self, keep: bool, train: bool) -> nn.Module:
        """Return the scanned block, named `layers`."""
        c = self.config
        block = Block
        if c.remat != "none":
            block = nn.remat(Block, policy=REMAT[c.remat], prevent_cse=False)
        scanned = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(0, nn.broadcast),
            out_axes=0,
            length=self.num_layers,
            unroll=1 if c.scan_layers else self.num_layers,
        )
        return scanned(c, self.cross, keep, train, self.num_layers, name="layers")

    def windows(self) -> jax.Array | None:
        """Return each layer's window, int32 [N], or None where no layer has one."""
        sizes = self.config.windows
        if not any(sizes):
            return None
        sizes = [sizes[i % len(sizes)] or NO_WINDOW for i in range(self.num_layers)]
        return jnp.asarray(sizes, jnp.int32)
