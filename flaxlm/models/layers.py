"""Parts that the models share: projections, norms, dropout, embeddings, feed-forward.

And what stands for the positions and segments that a batch leaves out.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.errors import ScopeParamShapeError
from jax.ad_checkpoint import checkpoint_name

from flaxlm.errors import ConfigError
from flaxlm.models.config import TransformerConfig, padded_vocab
from flaxlm.sharding import constrain


def kernel_axes(pattern: str, inputs: tuple, outputs: tuple) -> tuple:
    """Return the `AXES` rows of a kernel [*inputs, *outputs], its low-rank factors and its bias.

    A bias as wide as the model is whole on every device.
    """
    return (
        (rf"{pattern}/bias$", tuple(None if axis == "embed" else axis for axis in outputs)),
        (rf"{pattern}/kernel$", inputs + outputs),
        (rf"{pattern}/lora_a$", (*inputs, None)),
        (rf"{pattern}/lora_b$", (None, *outputs)),
        (rf"{pattern}/lora_scale$", ()),
    )


# Rows of the token table go over (tensor, fsdp) and its columns stay whole: with both split XLA
# rematerialises the lookup.
AXES = (
    (r"embed/token$", ("vocab", None)),
    (r"embed/(encoder_|decoder_)?(position|token_type)$", (None, "embed")),
    *kernel_axes(r"embed/projection", (None,), ("embed",)),
    (r"norm/(scale|bias)$", (None,)),
    *kernel_axes(r"mlp/(up|gate)", ("embed",), ("mlp",)),
    *kernel_axes(r"mlp/down", ("mlp",), ("embed",)),
)

ACTIVATIONS: dict[str, Callable] = {
    "gelu": lambda x: nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: nn.gelu(x, approximate=True),
    "relu": nn.relu,
    "silu": nn.silu,
    "tanh": jnp.tanh,
}


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def product(x: jax.Array, kernel: jax.Array, n: int = 1, dtype=None) -> jax.Array:
    """Return x · kernel in `dtype` (None: theirs), over the last n and the first n dimensions.

    The kernel's gradient is taken as xᵀ · g or (gᵀ · x)ᵀ, whichever transposes the smaller array:
    XLA writes a transposed array to memory once more.
    """
    contracted = (tuple(range(x.ndim - n, x.ndim)), tuple(range(n)))
    return jax.lax.dot_general(x, kernel, (contracted, ((), ())), preferred_element_type=dtype)


def _product_forward(x, kernel, n, dtype):
    return product(x, kernel, n, dtype), (x, kernel)


def _product_backward(n, dtype, kept, g):
    x, kernel = kept
    g = g.astype(x.dtype)
    rows, outputs = x.ndim - n, kernel.ndim - n
    contracted = (tuple(range(rows, g.ndim)), tuple(range(n, n + outputs)))
    dx = jax.lax.dot_general(g, kernel, (contracted, ((), ())))
    leading = (tuple(range(rows)),) * 2
    if x.size <= g.size:
        return dx, jax.lax.dot_general(x, g, (leading, ((), ())))
    transposed = jax.lax.dot_general(g, x, (leading, ((), ())))
    axes = (*range(outputs, outputs + n), *range(outputs))
    return dx, jnp.transpose(transposed, axes)


product.defvjp(_product_forward, _product_backward)


def parameter(module: nn.Module, name: str, init, shape: tuple[int, ...], dtype) -> jax.Array:
    """Return `module.param(…)`; where it is there already, `init` is not traced to compare shapes.

    Flax does that for each parameter at every call, which takes long where a model is traced.

    Raises:
      flax.errors.ScopeParamShapeError: it is there in another shape.
    """
    if not module.has_variable("params", name):
        return module.param(name, init, shape, dtype)
    value = module.get_variable("params", name)
    if value.shape != tuple(shape):
        raise ScopeParamShapeError(name, module.scope.path_text, value.shape, tuple(shape))
    return value


class Dense(nn.Module):
    """y = x · kernel + bias over the last `len(inputs)` dimensions of x.

    `kernel` has the shape inputs + outputs and is a single matrix to XLA, whatever the number of
    dimensions; `std` is the standard deviation of its normal initialisation.
    """

    config: object
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    std: float
    bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Return [..., *outputs] in the compute dtype from x [..., *inputs]."""
        c, init = self.config, nn.initializers.normal(self.std)
        kernel = parameter(self, "kernel", init, self.inputs + self.outputs, c.param_dtype)
        y = projected(self, x.astype(c.dtype), kernel, len(self.inputs))
        if self.bias:
            bias = parameter(self, "bias", nn.initializers.zeros, self.outputs, c.param_dtype)
            y += aligned(bias.astype(c.dtype), y.ndim)
        return y


def projected(module: nn.Module, x: jax.Array, kernel: jax.Array, n: int = 1, dtype=None):
    """Return `product` of x and a module's kernel, with low-rank factors merged into the kernel.

    LoRA (Hu et al., 2021, section 4.1): kernel + scale · a · b where `training.lora` has put lora_a
    [*inputs, R], lora_b [R, *outputs] and lora_scale beside the kernel. The sum is computed here,
    inside the scan over layers, and again in the backward pass, so that no more than one merged
    kernel is ever in memory.
    """

    def read(x, kernel, *factors):
        if factors:
            a, b, scale = factors
            kernel = kernel + scale * jnp.tensordot(a, b, 1, precision="highest")
        return product(x, kernel.astype(x.dtype), n, dtype)

    if not module.has_variable("params", "lora_a"):
        return read(x, kernel)
    factors = [module.get_variable("params", f"lora_{part}") for part in ("a", "b", "scale")]
    return jax.checkpoint(read, prevent_cse=False)(x, kernel, *factors)


def aligned(x: jax.Array, ndim: int) -> jax.Array:
    """Return x with leading dimensions of 1 up to `ndim`, so that it broadcasts explicitly."""
    return x.reshape((1,) * (ndim - x.ndim) + x.shape)


class Norm(nn.Module):
    """LayerNorm (Ba et al., 2016) or RMSNorm (Zhang & Sennrich, 2019), computed in float32."""

    config: TransformerConfig
    kind: str = ""  # that of `config.norm` where empty

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Return x [..., D] normalised over D, in the compute dtype."""
        c = self.config
        kind = self.kind or c.norm
        y = x.astype(jnp.float32)
        if kind == "layernorm":
            y = y - jnp.mean(y, axis=-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + c.norm_epsilon)
        init = nn.initializers.constant(1 - c.norm_offset)
        scale = parameter(self, "scale", init, x.shape[-1:], c.param_dtype).astype(jnp.float32)
        y = y * aligned(scale + c.norm_offset if c.norm_offset else scale, y.ndim)
        if kind == "layernorm" and c.norm_bias:
            bias = parameter(self, "bias", nn.initializers.zeros, x.shape[-1:], c.param_dtype)
            y = y + aligned(bias.astype(jnp.float32), y.ndim)
        return y.astype(c.dtype)


def dropout_words(module: nn.Module, train: bool, sites: int = 1) -> jax.Array | list[None]:
    """Return two random words for each dropout of a module, uint32 [sites, 2]; None for each."""
    if not train:
        return [None] * sites
    return jax.random.bits(module.make_rng("dropout"), (sites, 2), jnp.uint32)


def mix(h: jax.Array) -> jax.Array:
    """Return uint32 h with its bits mixed: the finaliser of MurmurHash3 (Appleby, 2011)."""
    h = (h ^ (h >> 16)) * jnp.uint32(0x85EBCA6B)
    h = (h ^ (h >> 13)) * jnp.uint32(0xC2B2AE35)
    return h ^ (h >> 16)


def keep_mask(words: jax.Array, shape: tuple[int, ...], rate: float) -> jax.Array:
    """Return bool `shape`, False with probability `rate`: a hash of (words, element index).

    A counter-based hash fuses into the multiplication that uses it, where a threefry stream would
    be written to memory and read again, and it does not depend on the sharding. Each row (all but
    the last dimension) derives its start from both words; each element is one step further.
    """
    row = jnp.zeros((*shape[:-1], 1), jnp.uint32)
    for axis, size in enumerate(shape[:-1]):
        row = row * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, row.shape, axis)
    row = mix(mix(row ^ words[0]) ^ words[1])
    last = len(shape) - 1
    column = jax.lax.broadcasted_iota(jnp.uint32, (1,) * last + shape[-1:], last)
    h = mix(row + column * jnp.uint32(0x9E3779B9))
    return h >= jnp.uint32(min(round(rate * 2**32), 2**32 - 1))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _dropout(x, words, rate):
    keep = keep_mask(words, x.shape, rate)
    return jnp.where(keep, x * jnp.asarray(1 / (1 - rate), x.dtype), jnp.zeros((), x.dtype))


def _dropout_forward(x, words, rate):
    return _dropout(x, words, rate), words


def _dropout_backward(rate, words, g):
    # Computing the mask again from its two words is cheaper than keeping it.
    return _dropout(g, words, rate), None


_dropout.defvjp(_dropout_forward, _dropout_backward)


def dropout(x: jax.Array, rate: float, words: jax.Array | None) -> jax.Array:
    """Return x with elements zeroed with probability `rate` and the others scaled up.

    `words` is one row of `dropout_words`: None, in evaluation, leaves x as it is.
    """
    return x if words is None or rate == 0 else _dropout(x, words, rate)


def sinusoids(positions_BL: jax.Array, width: int) -> jax.Array:
    """Return sine and cosine position encodings [B, L, width] (Vaswani et al., 2017, 3.5)."""
    angle_BLd = positions_BL.astype(jnp.float32)[..., None] * rates(width, 10_000.0)[None, None]
    return jnp.concatenate([jnp.sin(angle_BLd), jnp.cos(angle_BLd)], axis=-1)


def rates(size: int, theta: float) -> np.ndarray:
    """Return theta^(−2i / size) for i < size / 2, radians a position, float32 [size / 2]."""
    return np.float32(theta) ** (-np.arange(0, size, 2, dtype=np.float32) / np.float32(size))


class Embed(nn.Module):
    """Token, position and type embeddings; a tied output reads the same token table.

    Each of `sides` has a position table and a norm of its own; they share the token table.
    """

    config: TransformerConfig
    sides: tuple[str, ...] = ("",)

    def setup(self):
        """Make the parts; see the class."""
        c = self.config
        std = 1.0 if c.init == "t5" else c.init_std
        shape = (padded_vocab(c), c.embed_width)
        self.token = parameter(self, "token", nn.initializers.normal(std), shape, c.param_dtype)
        init = nn.initializers.normal(c.init_std)
        sides = self.sides
        if c.positions == "learned":
            rows = (c.max_length + c.position_offset, c.embed_width)
            self.tables = {
                s: parameter(self, f"{s}position", init, rows, c.param_dtype) for s in sides
            }
        if c.token_types:
            rows = (c.token_types, c.embed_width)
            self.token_type = parameter(self, "token_type", init, rows, c.param_dtype)
        if c.embed_norm:
            for s in sides:
                setattr(self, f"{s}norm", Norm(c))
        if c.embed_width != c.width:
            self.projection = Dense(c, (c.embed_width,), (c.width,), c.init_std)

    def __call__(
        self, tokens_BL, positions_BL, types_BL=None, train: bool = False, side: str = ""
    ) -> jax.Array:
        """Return x_BLD in the compute dtype from ids, positions and (None: 0) types [B, L].

        A `side` that is not in `sides` reads the shared tables.
        """
        c = self.config
        side = side if side in self.sides else ""
        x_BLE = take_rows(self.token, tokens_BL).astype(c.dtype)
        if c.embed_scale != 1:
            x_BLE *= jnp.asarray(c.embed_scale, x_BLE.dtype)
        if c.positions == "learned":
            if tokens_BL.shape[1] > c.max_length:
                raise ConfigError(
                    f"a length of {tokens_BL.shape[1]} is above model.max_length={c.max_length}; "
                    "rows are as long as train.length says"
                )
            rows = positions_BL + c.position_offset
            x_BLE += take_rows(self.tables[side], rows).astype(c.dtype)
        elif c.positions == "sinusoidal":
            x_BLE += sinusoids(positions_BL, c.embed_width).astype(c.dtype)
        if c.token_types:
            types_BL = jnp.zeros_like(tokens_BL) if types_BL is None else types_BL
            # As a product with one-hot rows the gradient is a product too, instead of a scatter.
            one_hot = jax.nn.one_hot(types_BL, c.token_types, dtype=c.dtype)
            x_BLE += one_hot @ self.token_type.astype(c.dtype)
        if c.embed_norm:
            x_BLE = getattr(self, f"{side}norm")(x_BLE)
        word = dropout_words(self, train and c.embed_dropout > 0)[0]
        x_BLE = dropout(x_BLE, c.embed_dropout, word)
        x_BLD = self.projection(x_BLE) if c.embed_width != c.width else x_BLE
        return constrain(x_BLD, "batch", "length", "embed")


def take_rows(table: jax.Array, ids: jax.Array) -> jax.Array:
    """Return table[ids]; ids are checked on the host, here they are clipped into the table."""
    return jnp.asarray(table).at[ids].get(mode="clip")


class MLP(nn.Module):
    """Feed-forward: down(act(up(x))), or gated, down(act(gate(x)) · up(x)) (Shazeer, 2020)."""

    config: TransformerConfig
    out_scale: float = 1.0  # of the initial standard deviation of `down`

    @nn.compact
    def __call__(self, x_BLD: jax.Array, words: jax.Array | None = None) -> jax.Array:
        """Return [B, L, D]; `words` switches the hidden dropout on."""
        c = self.config
        up_std, down_std = c.init_std, c.init_std * self.out_scale
        if c.init == "t5":
            up_std, down_std = c.width**-0.5, c.mlp_width**-0.5
        inner, outer, act = (c.mlp_width,), (c.width,), ACTIVATIONS[c.activation]
        hidden_BLF = Dense(c, outer, inner, up_std, c.mlp_bias, name="up")(x_BLD)
        hidden_BLF = checkpoint_name(hidden_BLF, "projection")
        if c.gated:
            gate_BLF = Dense(c, outer, inner, up_std, c.mlp_bias, name="gate")(x_BLD)
            hidden_BLF = act(checkpoint_name(gate_BLF, "projection")) * hidden_BLF
        else:
            hidden_BLF = act(hidden_BLF)
        hidden_BLF = constrain(hidden_BLF, "batch", "length", "mlp")
        hidden_BLF = dropout(hidden_BLF, c.mlp_dropout, words)
        return Dense(c, inner, outer, down_std, c.mlp_bias, name="down")(hidden_BLF)


def default_positions(tokens_BL: jax.Array, segments_BL: jax.Array | None) -> jax.Array:
    """Return int32 [B, L]: the index in a row, restarting where the segment changes."""
    index_L = jnp.arange(tokens_BL.shape[1], dtype=jnp.int32)
    index_BL = jnp.broadcast_to(index_L[None], tokens_BL.shape)
    if segments_BL is None:
        return index_BL
    changed = segments_BL[:, 1:] != segments_BL[:, :-1]
    start_BL = jnp.where(jnp.pad(changed, [(0, 0), (1, 0)]), index_BL, 0)
    return index_BL - jax.lax.cummax(start_BL, axis=1)


def positions_of(batch: dict, prefix: str = "") -> jax.Array:
    """Return the batch's positions [B, L], or their default; `prefix` is "" or "encoder_"."""
    positions = batch.get(f"{prefix}positions")
    if positions is not None:
        return positions
    return default_positions(batch[f"{prefix}tokens"], batch.get(f"{prefix}segment_ids"))


def segments_of(batch: dict, prefix: str = "") -> jax.Array:
    """Return the batch's segment ids [B, L], by default all ones."""
    segments = batch.get(f"{prefix}segment_ids")
    return jnp.ones_like(batch[f"{prefix}tokens"]) if segments is None else segments
