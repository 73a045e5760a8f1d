"""The Transformer families: BERT's encoder, GPT's decoder, T5's encoder-decoder.

All read batches of tokens [B, L] and, where present, segment_ids, positions, token_types (all
[B, L]) and target_positions [B, P]; dropout takes the rng `dropout`, in training only.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxlm.models import attention, cache, heads, layers
from flaxlm.models.config import TransformerConfig
from flaxlm.models.heads import Heads
from flaxlm.models.layers import Embed, positions_of, segments_of
from flaxlm.models.transformer import Stack

AXES = layers.AXES + attention.AXES + heads.AXES
HEADS = ("lm", "classification", "pooled", "token_classification", "question_answering")
ENCODER_HEADS = ("mlm", "nsp", "classification", "pooled", "lm", *HEADS[3:], "discriminator")


class Encoder(nn.Module):
    """Every token sees its whole document (Devlin et al., 2018)."""

    config: TransformerConfig
    head_sizes: tuple[tuple[str, int], ...] = ()

    def setup(self):
        """Make the parts; see the class."""
        c = self.config
        self.embed = Embed(c)
        self.encoder = Stack(c, c.num_layers, causal=False)
        self.heads = Heads(c, self.head_sizes, ENCODER_HEADS, pool="first")

    def __call__(self, batch: dict, train: bool = False) -> dict:
        """Return `hidden` [B, L, D] and an entry for each head, see `heads`."""
        positions = positions_of(batch)
        x_BLD = self.embed(batch["tokens"], positions, batch.get("token_types"), train)
        x_BLD, _ = self.encoder(x_BLD, positions, batch.get("segment_ids"), train=train)
        return {"hidden": x_BLD} | self.heads(x_BLD, batch, self.embed.token, train)


class Decoder(nn.Module):
    """A token sees its document up to itself, and those that `prefix_mask` [B, L] marks."""

    config: TransformerConfig
    head_sizes: tuple[tuple[str, int], ...] = (("lm", 0),)

    def setup(self):
        """Make the parts; see the class."""
        c = self.config
        self.embed = Embed(c)
        self.decoder = Stack(c, c.num_layers, causal=True)
        self.heads = Heads(c, self.head_sizes, HEADS, pool="last")

    def __call__(self, batch: dict, train: bool = False) -> dict:
        """Return `hidden` [B, L, D] and an entry for each head, see `heads`."""
        x_BLD, _ = self.hidden(batch, train=train)
        return {"hidden": x_BLD} | self.heads(x_BLD, batch, self.embed.token, train)

    def hidden(self, batch: dict, keep: bool = False, train: bool = False):
        """Return the final hidden state [B, L, D], and keys and values of all layers if kept."""
        positions = positions_of(batch)
        x_BLD = self.embed(batch["tokens"], positions, batch.get("token_types"), train)
        segments, prefix_mask = batch.get("segment_ids"), batch.get("prefix_mask")
        options = {"prefix_mask": prefix_mask, "keep": keep, "train": train}
        return self.decoder(x_BLD, positions, segments, **options)

    def prefill(self, batch: dict, cache_length: int) -> tuple[jax.Array, dict]:
        """Read prompts padded on the left; return last-token logits [B, V] and the cache.

        `cache_length` (static) counts the decoder's tokens, prompt and continuation together.
        """
        x_BLD, kept = self.hidden(batch, keep=True)
        logits = self.heads.language(x_BLD[:, -1:], self.embed.token)
        segments, positions = segments_of(batch), positions_of(batch)
        return logits[:, 0], cache.start_cache(self.config, kept, segments, positions, cache_length)

    def decode_step(self, tokens_B1: jax.Array, state: dict) -> tuple[jax.Array, dict]:
        """Append one token a row; return the logits [B, V] of the next and the new cache."""
        state = cache.begin_step(state)
        positions, memory_segments = state["positions"], state.get("encoder_segment_ids")
        x_B1D = self.embed(tokens_B1, positions, side="decoder_")
        options = {"memory_segments": memory_segments, "cache": state, "keep": True}
        x_B1D, kept = self.decoder(x_B1D, positions, jnp.ones_like(tokens_B1), **options)
        logits = self.heads.language(x_B1D, self.embed.token)
        return logits[:, 0], cache.end_step(state, kept)


class EncoderDecoder(Decoder):
    """A decoder that reads an encoded text (Raffel et al., 2020); both sides share the token table.

    A batch has `encoder_tokens` [B, M] too, and the others' `encoder_` counterparts where present;
    a document has the same segment on both sides.
    """

    def setup(self):
        """Make the parts; see the class."""
        c = self.config
        self.embed = Embed(c, ("encoder_", "decoder_") if c.separate_positions else ("",))
        self.encoder = Stack(c, c.num_layers, causal=False)
        self.decoder = Stack(c, c.num_decoder_layers, causal=True, cross=True)
        self.heads = Heads(c, self.head_sizes, HEADS, pool="last")

    def __call__(self, batch: dict, train: bool = False) -> dict:
        """Return decoder `hidden` [B, L, D], `encoded` [B, M, D] and an entry for each head."""
        memory_BMD = self.encode(batch, train)
        x_BLD, _ = self.hidden(batch, train=train, memory_BMD=memory_BMD)
        out = {"hidden": x_BLD, "encoded": memory_BMD}
        return out | self.heads(x_BLD, batch, self.embed.token, train)

    def encode(self, batch: dict, train: bool = False) -> jax.Array:
        """Return the encoder's final hidden state [B, M, D]."""
        positions = positions_of(batch, "encoder_")
        x_BMD = self.embed(batch["encoder_tokens"], positions, None, train, "encoder_")
        segments = batch.get("encoder_segment_ids")
        return self.encoder(x_BMD, positions, segments, train=train)[0]

    def hidden(self, batch: dict, keep: bool = False, train: bool = False, memory_BMD=None):
        """Return the decoder's final hidden state [B, L, D], and keys and values if kept."""
        memory_BMD = self.encode(batch, train) if memory_BMD is None else memory_BMD
        positions = positions_of(batch)
        x_BLD = self.embed(batch["tokens"], positions, batch.get("token_types"), train, "decoder_")
        memory = {"memory": memory_BMD, "memory_segments": segments_of(batch, "encoder_")}
        return self.decoder(x_BLD, positions, segments_of(batch), **memory, keep=keep, train=train)

    def prefill(self, batch: dict, cache_length: int) -> tuple[jax.Array, dict]:
        """Encode once and read decoder prompts, at least the start token; see `Decoder`."""
        logits, state = super().prefill(batch, cache_length)
        return logits, state | {"encoder_segment_ids": segments_of(batch, "encoder_")}
