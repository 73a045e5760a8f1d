"""GPT's family: a token sees its document up to itself, and the prefix if there is one."""

import flax.linen as nn
import jax

from flaxlm.models import attention, cache, heads, layers
from flaxlm.models.config import TransformerConfig
from flaxlm.models.heads import Heads
from flaxlm.models.inputs import positions_of, segments_of
from flaxlm.models.layers import Embed
from flaxlm.models.transformer import Stack

AXES = layers.AXES + attention.AXES + heads.AXES
HEADS = ("lm", "classification", "pooled", "token_classification", "question_answering")


class Decoder(nn.Module):
    """Causal or prefix language model; `HEADS` are its heads."""

    config: TransformerConfig
    head_sizes: tuple[tuple[str, int], ...] = (("lm", 0),)

    def setup(self):
        """Make the parts; see the class."""
        c = self.config
        self.embed = Embed(c)
        self.decoder = Stack(c, c.num_layers, causal=True)
        self.heads = Heads(c, self.head_sizes, HEADS, pool="last")

    def __call__(self, batch: dict, train: bool = False) -> dict:
        """Return `hidden` [B, L, D] and an entry for each head, see `heads`.

        Reads tokens [B, L] and, where present, segment_ids, positions, token_types, prefix_mask.
        Dropout takes the rng `dropout`, in training only.
        """
        x_BLD, _ = self.hidden(batch, train=train)
        return {"hidden": x_BLD} | self.heads(x_BLD, batch, self.embed.token, train)

    def hidden(self, batch: dict, keep: bool = False, train: bool = False):
        """Return the final hidden state [B, L, D], and keys and values of all layers if kept."""
        positions = positions_of(batch)
        x_BLD = self.embed(batch["tokens"], positions, batch.get("token_types"), train)
        return self.decoder(
            x_BLD,
            positions,
            batch.get("segment_ids"),
            prefix_mask=batch.get("prefix_mask"),
            keep=keep,
            train=train,
        )

    def prefill(self, batch: dict, cache_length: int) -> tuple[jax.Array, dict]:
        """Read prompts padded on the left; return last-token logits [B, V] and the cache.

        `cache_length` (static) counts the tokens of prompt and continuation together.
        """
        x_BLD, kept = self.hidden(batch, keep=True)
        logits = self.heads.language(x_BLD[:, -1:], self.embed.token)
        segments, positions = segments_of(batch), positions_of(batch)
        return logits[:, 0], cache.start_cache(self.config, kept, segments, positions, cache_length)

    def decode_step(self, tokens_B1: jax.Array, state: dict) -> tuple[jax.Array, dict]:
        """Append one token a row; return the logits [B, V] of the next and the new cache."""
        state = cache.begin_step(state)
        x_B1D = self.embed(tokens_B1, state["positions"])
        ones = jax.numpy.ones_like(tokens_B1)
        x_B1D, kept = self.decoder(x_B1D, state["positions"], ones, cache=state, keep=True)
        logits = self.heads.language(x_B1D, self.embed.token)
        return logits[:, 0], cache.end_step(state, kept)
