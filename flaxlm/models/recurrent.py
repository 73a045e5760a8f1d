"""A stacked LSTM or GRU language model: the proof that an architecture is one file and one row."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxlm.errors import check_range
from flaxlm.models import heads, layers
from flaxlm.models.config import check_fields, padded_vocab
from flaxlm.models.heads import Heads
from flaxlm.models.layers import Dense, dropout, dropout_words, parameter, segments_of
from flaxlm.sharding import constrain

AXES = (
    (r"recurrent/token$", ("vocab", None)),
    *layers.kernel_axes(r"layers/(input|recurrent)", ("embed",), (None, "mlp")),
    *heads.AXES,
)
HEADS = ("lm", "classification", "pooled")


@dataclasses.dataclass(frozen=True)
class RecurrentConfig:
    """Architecture of the recurrent language model; names as in `TransformerConfig`."""

    vocab_size: int = 8192  # ids; 0: what the tokenizer has
    vocab_multiple: int = 128  # the token table's rows are padded to one
    width: int = 256  # of embedding and layers
    num_layers: int = 2  # stacked cells
    cell: str = "lstm"  # lstm, gru
    tied: bool = True  # the LM head's kernel is the token table
    output_scale: float = 1.0  # of the hidden state before the LM head
    output_softcap: float = 0.0  # of the LM head's logits; 0: off
    output_bias: bool = False  # of the LM head
    pooling: str = ""  # first, last, mean; empty: last
    pooler: str = ""  # none, dense; empty: dense for first
    pooler_activation: str = "tanh"  # of a dense pooler
    classification_bias: bool = True  # of the classifier
    embed_dropout: float = 0.0  # of the embeddings
    layer_dropout: float = 0.0  # of each layer's output
    head_dropout: float = 0.0  # of the vector that a classifier reads
    init: str = "normal"  # normal
    init_std: float = 0.05  # of the normal distribution
    dtype: str = "float32"  # of matrix products and activations
    param_dtype: str = "float32"  # of the stored parameters

    def __post_init__(self):
        check_range("model", self, "vocab_size")  # 0: as many as the tokenizer has
        check_range("model", self, "vocab_multiple", "width", "num_layers", low=1)
        check_fields(self, cell=CELLS, pooler=("", "none", "dense"), init=("normal",))


def lstm(gates_BgD: jax.Array, recurrent_BgD: jax.Array, state: dict) -> dict:
    """One LSTM step (Hochreiter & Schmidhuber, 1997; forget gate: Gers et al., 2000).

    Gates stand in the order input, forget, candidate, output; `state` holds `h` and `c` [B, D].
    """
    i, f, g, o = jnp.moveaxis(gates_BgD + recurrent_BgD, 1, 0)
    c = nn.sigmoid(f) * state["c"] + nn.sigmoid(i) * jnp.tanh(g)
    return {"h": nn.sigmoid(o) * jnp.tanh(c), "c": c}


def gru(gates_BgD: jax.Array, recurrent_BgD: jax.Array, state: dict) -> dict:
    """One GRU step (Cho et al., 2014), the reset gate on the recurrent product as in cuDNN.

    Gates stand in the order reset, update, candidate; `state` holds `h` [B, D].
    """
    x_r, x_z, x_n = jnp.moveaxis(gates_BgD, 1, 0)
    h_r, h_z, h_n = jnp.moveaxis(recurrent_BgD, 1, 0)
    update = nn.sigmoid(x_z + h_z)
    candidate = jnp.tanh(x_n + nn.sigmoid(x_r + h_r) * h_n)
    return {"h": (1 - update) * candidate + update * state["h"]}


CELLS = {"lstm": (lstm, 4, ("h", "c")), "gru": (gru, 3, ("h",))}  # step, gates, state


class Layer(nn.Module):
    """One recurrent layer over time; its state is zeroed where a document begins."""

    config: RecurrentConfig
    train: bool = False

    @nn.compact
    def __call__(self, x_BLD, state: dict, fresh_BL: jax.Array):
        """Return outputs [B, L, D] and the last state {name: float32 [B, D]}.

        `state` is that before the first token; `fresh_BL` is True where a document begins.
        """
        c = self.config
        step, gates, _ = CELLS[c.cell]
        dense = functools.partial(Dense, c, (c.width,), (gates, c.width), c.width**-0.5)
        # One product for all time steps: only the recurrent one depends on the step before.
        gates_LBgD = jnp.moveaxis(dense(name="input")(x_BLD), 1, 0)
        recurrent = dense(name="recurrent")

        def advance(module, state, inputs):
            gates, fresh_B = inputs
            state = {k: jnp.where(fresh_B[:, None], 0.0, v) for k, v in state.items()}
            state = step(gates.astype(jnp.float32), module(state["h"]).astype(jnp.float32), state)
            # Without this pin XLA chooses a sharding for the loop's state, and on a 2x2x2 mesh the
            # gradients came out wrong.
            state = {k: constrain(v, "batch", "embed") for k, v in state.items()}
            return state, state["h"].astype(c.dtype)

        scan = nn.scan(advance, variable_broadcast="params", split_rngs={"params": False})
        state, y_LBD = scan(recurrent, state, (gates_LBgD, jnp.moveaxis(fresh_BL, 1, 0)))
        y_BLD = jnp.moveaxis(y_LBD, 0, 1)
        word = dropout_words(self, self.train and c.layer_dropout > 0)[0]
        y_BLD = dropout(y_BLD, c.layer_dropout, word)
        return constrain(y_BLD, "batch", "length", "embed"), state


class RecurrentStack(nn.Module):
    """The token table and N layers, scanned, so that their parameters are stacked."""

    config: RecurrentConfig

    @nn.compact
    def __call__(self, tokens_BL, segments_BL, state=None, train: bool = False):
        """Return hidden x_BLD, the layers' last state {name: [N, B, D]}, and the token table.

        A token whose segment differs from the one before it starts from a zero state; the first
        continues `state`, by default zero.
        """
        c = self.config
        shape, init = (padded_vocab(c), c.width), nn.initializers.normal(c.init_std)
        table_VD = parameter(self, "token", init, shape, c.param_dtype)
        x_BLD = layers.take_rows(table_VD, tokens_BL).astype(c.dtype)
        word = dropout_words(self, train and c.embed_dropout > 0)[0]
        x_BLD = dropout(x_BLD, c.embed_dropout, word)
        x_BLD = constrain(x_BLD, "batch", "length", "embed")
        if state is None:
            zeros = jnp.zeros((c.num_layers, tokens_BL.shape[0], c.width), jnp.float32)
            state = dict.fromkeys(CELLS[c.cell][2], zeros)
        fresh_BL = jnp.pad(segments_BL[:, 1:] != segments_BL[:, :-1], [(0, 0), (1, 0)])
        scanned = nn.scan(
            Layer,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(0, nn.broadcast),
            out_axes=0,
            length=c.num_layers,
        )(c, train, name="layers")
        x_BLD, state = scanned(x_BLD, state, fresh_BL)
        return x_BLD, state, table_VD


class Recurrent(nn.Module):
    """Recurrent language model; `HEADS` are its heads."""

    config: RecurrentConfig
    head_sizes: tuple[tuple[str, int], ...] = (("lm", 0),)

    def setup(self):
        """Make the parts; see the class."""
        self.recurrent = RecurrentStack(self.config)
        self.heads = Heads(self.config, self.head_sizes, HEADS, pool="last")

    def __call__(self, batch: dict, train: bool = False) -> dict:
        """Return `hidden` [B, L, D] and an entry for each head, see `heads`.

        Reads tokens [B, L] and, where present, segment_ids: a new segment resets the state.
        Dropout takes the rng `dropout`, in training only.
        """
        x_BLD, _, table_VD = self.recurrent(batch["tokens"], segments_of(batch), train=train)
        return {"hidden": x_BLD} | self.heads(x_BLD, batch, table_VD, train)

    def prefill(self, batch: dict, cache_length: int) -> tuple[jax.Array, dict]:
        """Read prompts padded on the left; return last-token logits [B, V] and the state."""
        del cache_length  # of other families: the state has one size
        x_BLD, state, table_VD = self.recurrent(batch["tokens"], segments_of(batch))
        return self.heads.language(x_BLD[:, -1:], table_VD)[:, 0], state

    def decode_step(self, tokens_B1: jax.Array, state: dict) -> tuple[jax.Array, dict]:
        """Append one token a row; return the logits [B, V] of the next and the new state."""
        x_B1D, state, table_VD = self.recurrent(tokens_B1, jnp.ones_like(tokens_B1), state)
        return self.heads.language(x_B1D, table_VD)[:, 0], state
