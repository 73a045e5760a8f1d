"""BERT's family: every token sees its whole document (Devlin et al., 2018)."""

import flax.linen as nn

from flaxlm.models import attention, heads, layers
from flaxlm.models.config import TransformerConfig
from flaxlm.models.heads import Heads
from flaxlm.models.inputs import positions_of
from flaxlm.models.layers import Embed
from flaxlm.models.transformer import Stack

AXES = layers.AXES + attention.AXES + heads.AXES
HEADS = (
    "mlm",
    "nsp",
    "classification",
    "pooled",
    "lm",
    "token_classification",
    "question_answering",
    "discriminator",
)


class Encoder(nn.Module):
    """Bidirectional encoder; `HEADS` are its heads."""

    config: TransformerConfig
    head_sizes: tuple[tuple[str, int], ...] = ()

    def setup(self):
        """Make the parts; see the class."""
        c = self.config
        self.embed = Embed(c)
        self.encoder = Stack(c, c.num_layers, causal=False)
        self.heads = Heads(c, self.head_sizes, HEADS, pool="first")

    def __call__(self, batch: dict, train: bool = False) -> dict:
        """Return `hidden` [B, L, D] and an entry for each head, see `heads`.

        Reads tokens [B, L] and, where present, segment_ids, positions, token_types and
        target_positions [B, P]. Dropout takes the rng `dropout`, in training only.
        """
        positions = positions_of(batch)
        x_BLD = self.embed(batch["tokens"], positions, batch.get("token_types"), train)
        x_BLD, _ = self.encoder(x_BLD, positions, batch.get("segment_ids"), train=train)
        return {"hidden": x_BLD} | self.heads(x_BLD, batch, self.embed.token, train)
