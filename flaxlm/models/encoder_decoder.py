"""T5's family: a decoder that reads an encoded text (Raffel et al., 2020)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxlm.models import attention, cache, heads, layers
from flaxlm.models.config import TransformerConfig
from flaxlm.models.heads import Heads
from flaxlm.models.inputs import positions_of, segments_of
from flaxlm.models.layers import Embed
from flaxlm.models.transformer import Stack

AXES = layers.AXES + attention.AXES + heads.AXES
HEADS = ("lm", "classification", "pooled", "token_classification", "question_answering")


class EncoderDecoder(nn.Module):
    """Text-to-text model; both sides share the embeddings, each has its own stack."""

    config: TransformerConfig
    head_sizes: tuple[tuple[str, int], ...] = (("lm", 0),)

    def setup(self):
        """Make the parts; see the class."""
        c = self.config
        self.embed = Embed(c, ("encoder_", "decoder_") if c.separate_positions else ("",))
        self.encoder = Stack(c, c.num_layers, causal=False)
        self.decoder = Stack(c, c.num_decoder_layers, causal=True, cross=True)
        self.heads = Heads(c, self.head_sizes, HEADS, pool="last")

    def __call__(self, batch: dict, train: bool = False) -> dict:
        """Return decoder `hidden` [B, L, D], `encoded` [B, M, D] and an entry for each head.

        Reads encoder_tokens [B, M], tokens [B, L] and, where present, segment_ids, positions and
        their encoder_ counterparts; a document has the same segment on both sides. Dropout takes
        the rng `dropout`, in training only.
        """
        memory_BMD = self.encode(batch, train)
        x_BLD, _ = self.decode(batch, memory_BMD, train=train)
        out = {"hidden": x_BLD, "encoded": memory_BMD}
        return out | self.heads(x_BLD, batch, self.embed.token, train)

    def encode(self, batch: dict, train: bool = False) -> jax.Array:
        """Return the encoder's final hidden state [B, M, D]."""
        positions = positions_of(batch, "encoder_")
        x_BMD = self.embed(batch["encoder_tokens"], positions, None, train, "encoder_")
        segments = batch.get("encoder_segment_ids")
        return self.encoder(x_BMD, positions, segments, train=train)[0]

    def decode(self, batch: dict, memory_BMD, keep: bool = False, train: bool = False):
        """Return the decoder's final hidden state [B, L, D], and keys and values if kept."""
        positions = positions_of(batch)
        x_BLD = self.embed(batch["tokens"], positions, batch.get("token_types"), train, "decoder_")
        return self.decoder(
            x_BLD,
            positions,
            segments_of(batch),
            memory=memory_BMD,
            memory_segments=segments_of(batch, "encoder_"),
            keep=keep,
            train=train,
        )

    def prefill(self, batch: dict, cache_length: int) -> tuple[jax.Array, dict]:
        """Encode once, read decoder prompts padded on the left; return logits [B, V] and cache.

        `tokens` holds at least the start token; `cache_length` (static) counts decoder tokens,
        prompt and continuation together.
        """
        x_BLD, kept = self.decode(batch, self.encode(batch), keep=True)
        logits = self.heads.language(x_BLD[:, -1:], self.embed.token)
        segments, positions = segments_of(batch), positions_of(batch)
        state = cache.start_cache(self.config, kept, segments, positions, cache_length)
        return logits[:, 0], state | {"encoder_segment_ids": segments_of(batch, "encoder_")}

    def decode_step(self, tokens_B1: jax.Array, state: dict) -> tuple[jax.Array, dict]:
        """Append one token a row; return the logits [B, V] of the next and the new cache."""
        state = cache.begin_step(state)
        x_B1D, kept = self.decoder(
            self.embed(tokens_B1, state["positions"], side="decoder_"),
            state["positions"],
            jnp.ones_like(tokens_B1),
            memory_segments=state["encoder_segment_ids"],
            cache=state,
            keep=True,
        )
        logits = self.heads.language(x_B1D, self.embed.token)
        return logits[:, 0], cache.end_step(state, kept)
