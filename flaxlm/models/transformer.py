"""The one Block and the one Stack under the three Transformer families."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jax.ad_checkpoint import checkpoint_name

from flaxlm.models import attention
from flaxlm.models.attention import Attention, RelativeBias, Scores
from flaxlm.models.cache import put
from flaxlm.models.config import TransformerConfig
from flaxlm.models.layers import MLP, Norm, dropout, dropout_words
from flaxlm.sharding import constrain

KEPT = ("residual", "attention", "projection")

# What the backward pass keeps instead of recomputing; `none` keeps everything. `cheap` keeps the
# results of matrix products, and recomputes norms, activations and dropout masks.
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
    rotary: tuple[jax.Array, jax.Array] | None = None  # (cos, sin) [B, L, 1, R / 2]
    local_rotary: tuple[jax.Array, jax.Array] | None = None  # of layers with a window
    memory: jax.Array | None = None  # encoder output [B, M, D]
    index: jax.Array | None = None  # cached decoding: where in the cache this token goes


class Block(nn.Module):
    """Attention, cross-attention if asked for, feed-forward, each with a residual and a norm."""

    config: TransformerConfig
    cross: bool = False
    keep: bool = False  # return keys and values, for a cache
    train: bool = False
    depth: int = 1  # of the stack, for the initial scale of residual outputs
    normed: bool = True  # False: no norm before the attention

    @nn.compact
    def __call__(self, x_BLD, layer, context: Context):
        """Return x_BLD after this layer and {name: new keys or values}.

        `layer` = (window or None, this layer's cache or None).
        """
        c = self.config
        window, cache = layer
        words = dropout_words(self, self.train, 6)
        out_scale = (2 * self.depth) ** -0.5 if c.scale_residual_init else 1.0
        kept = {}

        def branch(name, part, word, x):
            """Return what a part with its norm before it adds to the residual stream."""
            if name != "attention" or self.normed:
                x = Norm(c, name=f"{name}_norm")(x)
            y = part(x)
            if c.norm_position == "sandwich":
                y = Norm(c, name=f"{name}_post_norm")(y)
            return dropout(y, c.residual_dropout, word)

        def residual(name, part, word, x):
            if c.norm_position == "post":
                x = x + dropout(part(x), c.residual_dropout, word)
                return Norm(c, name=f"{name}_norm")(checkpoint_name(x, "residual"))
            return checkpoint_name(x + branch(name, part, word, x), "residual")

        rotary = context.rotary
        if context.local_rotary is not None:
            local = window < NO_WINDOW
            choose = functools.partial(jnp.where, local)
            rotary = jax.tree.map(choose, context.local_rotary, rotary)

        def self_attention(x):
            module = Attention(c, out_scale, name="attention")
            key, value = module.keys_values(x, rotary)
            kept.update(key=key, value=value)
            if cache is not None:
                key = put(cache["key"], key, context.index, axis=1)
                value = put(cache["value"], value, context.index, axis=1)
            options = {"rotary": rotary, "window": window, "words": words[0]}
            return module(x, key, value, context.scores, **options)

        def cross_attention(x):
            module = Attention(c, out_scale, name="cross_attention")
            if cache is not None:
                key, value = cache["cross_key"], cache["cross_value"]
            else:
                key, value = module.keys_values(context.memory)
                kept.update(cross_key=key, cross_value=value)
            return module(x, key, value, context.cross_scores, words=words[2])

        mlp = MLP(c, out_scale, name="mlp")
        if c.parallel:
            added = branch("attention", self_attention, words[1], x_BLD)
            added += branch("mlp", lambda x: mlp(x, words[4]), words[5], x_BLD)
            x_BLD = checkpoint_name(x_BLD + added, "residual")
        else:
            x_BLD = residual("attention", self_attention, words[1], x_BLD)
            if self.cross:
                x_BLD = residual("cross_attention", cross_attention, words[3], x_BLD)
            x_BLD = residual("mlp", lambda x: mlp(x, words[4]), words[5], x_BLD)
        x_BLD = constrain(x_BLD, "batch", "length", "embed")
        return x_BLD, kept if self.keep else None


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
          x_BLD: embedded tokens; with a `cache` (see `cache.py`), of the one that is decoded.
          positions_BL: int32, from 0 in every document.
          segments_BL: int32, 0 on padding; None: one document a row, no padding.
          prefix_mask: int32 [B, L], 1 on tokens that their whole document sees.
          memory, memory_segments: encoder output [B, M, D] and its segments, if `cross`.
          keep: whether to return the keys and values of all layers, [N, B, L, H, K] each.
        """
        c = self.config
        if cache is None:
            index, keys = None, segments_BL
            distance = attention.query_key_distances(x_BLD.shape[1], x_BLD.shape[1])
        else:
            index, keys = cache["index"], cache["segment_ids"]
            distance = attention.query_key_distances(1, keys.shape[1], index)
        mask = attention.visibility(distance, segments_BL, keys, self.causal, prefix_mask)
        relative = rotary = local_rotary = cross_scores = None
        if c.positions == "relative":
            relative = RelativeBias(c, self.causal, name="relative")(distance)
        if c.positions == "rotary":
            rotary = attention.rotary_table(positions_BL, c)
            if c.rope_local_theta and any(c.windows):
                local_rotary = attention.rotary_table(positions_BL, c, local=True)
        if self.cross:
            cross_mask = attention.visibility(None, segments_BL, memory_segments, causal=False)
            cross_scores = Scores(cross_mask)
        scores = Scores(mask, relative, distance if any(c.windows) else None)
        context = Context(scores, cross_scores, rotary, local_rotary, memory, index)
        layers = (self.windows(), None if cache is None else cache["layers"])
        apart, kept = int(not c.first_norm), []
        if apart:
            # A layer of another structure comes before the scanned ones.
            layer = jax.tree.map(lambda a: a[0], layers)
            options = {"keep": keep, "train": train, "depth": self.num_layers, "normed": False}
            first = self.block()(c, self.cross, **options, name="first")
            x_BLD, cached = first(x_BLD, layer, context)
            kept.append(jax.tree.map(lambda a: a[None], cached))
            layers = jax.tree.map(lambda a: a[1:], layers)
        if self.num_layers > apart:
            scanned = self.blocks(keep, train, self.num_layers - apart)
            x_BLD, cached = scanned(x_BLD, layers, context)
            kept.append(cached)
        kept = jax.tree.map(lambda *parts: jnp.concatenate(parts), *kept) if kept[1:] else kept[0]
        if c.final_norm:
            x_BLD = Norm(c, name="final_norm")(x_BLD)
        word = dropout_words(self, train and c.output_dropout > 0)[0]
        return dropout(x_BLD, c.output_dropout, word), kept

    def block(self):
        """Return the class of a block, with its rematerialisation."""
        remat = self.config.remat
        if remat == "none":
            return Block
        return nn.remat(Block, policy=REMAT[remat], prevent_cse=False)

    def blocks(self, keep: bool, train: bool, length: int) -> nn.Module:
        """Return the scanned block, named `layers`; shared parameters are not stacked."""
        c = self.config
        scanned = nn.scan(
            self.block(),
            variable_axes={} if c.share_layers else {"params": 0},
            variable_broadcast="params" if c.share_layers else False,
            split_rngs={"params": not c.share_layers, "dropout": True},
            in_axes=(0, nn.broadcast),
            out_axes=0,
            length=length,
            unroll=1 if c.scan_layers else length,
        )
        return scanned(c, self.cross, keep, train, self.num_layers, name="layers")

    def windows(self) -> jax.Array | None:
        """Return each layer's window, int32 [N], or None where no layer has one."""
        sizes = self.config.windows
        if not any(sizes):
            return None
        sizes = [sizes[i % len(sizes)] or NO_WINDOW for i in range(self.num_layers)]
        return jnp.asarray(sizes, jnp.int32)
