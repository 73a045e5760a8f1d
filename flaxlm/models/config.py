"""The one configuration of the three Transformer families: a field for every architectural choice.

Dimension key of all model code: B batch, L length, M memory length, D model width, H key/value
heads, G queries per key/value head, K head size, F feed-forward width, V vocabulary, N layers,
P predicted positions, C classes.
"""

import dataclasses

from flaxlm.errors import ConfigError, choose

NORMS = ("layernorm", "rmsnorm")
NORM_POSITIONS = ("pre", "post")
POSITIONS = ("learned", "sinusoidal", "rotary", "relative", "none")
ACTIVATIONS = ("gelu", "gelu_tanh", "relu", "silu", "tanh")
INITS = ("normal", "t5")
REMATS = ("none", "cheap", "dots", "full")
DTYPES = ("float32", "bfloat16", "float16")
ATTENTIONS = ("einsum",)
POOLINGS = ("", "first", "last", "mean")


def check_positive(config, *names: str) -> None:
    """Raise ConfigError unless each named field is at least 1."""
    for name in names:
        if getattr(config, name) < 1:
            raise ConfigError(f"model.{name}={getattr(config, name)} must be at least 1")


def check_rates(config) -> None:
    """Raise ConfigError unless each field that ends in `_dropout` is in [0, 1)."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name.endswith("_dropout") and not 0 <= value < 1:
            raise ConfigError(f"model.{field.name}={value} must be at least 0 and below 1")


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """Architecture of an encoder, a decoder or an encoder-decoder.

    Sizes that are 0 take the usual value: `num_kv_heads` = `num_heads`, `head_dim` =
    `width` / `num_heads`, `mlp_width` = 4 · `width`, `num_decoder_layers` = `num_layers`.
    """

    # Sizes.
    vocab_size: int = 8192
    vocab_multiple: int = 128  # the token table is stored with its rows padded to a multiple
    width: int = 256
    num_layers: int = 4
    num_decoder_layers: int = 0  # encoder-decoder only
    num_heads: int = 4
    num_kv_heads: int = 0  # 1: multi-query; between 1 and num_heads: grouped-query
    head_dim: int = 0
    mlp_width: int = 0
    max_length: int = 512  # rows of the learned position table

    # Norms.
    norm: str = "layernorm"
    norm_position: str = "pre"
    norm_epsilon: float = 1e-5
    norm_bias: bool = True
    embed_norm: bool = False  # BERT
    final_norm: bool = True

    # Positions and attention.
    positions: str = "learned"
    rope_theta: float = 10_000.0
    relative_buckets: int = 32
    relative_max_distance: int = 128
    windows: tuple[int, ...] = ()  # per layer, repeated as a pattern; 0 sees everything
    attention: str = "einsum"
    attention_scale: float = 0.0  # of the scores; 0: head_dim ** -0.5; T5: 1

    # Feed-forward, biases.
    activation: str = "gelu_tanh"
    gated: bool = False
    attention_bias: bool = True  # of query, key and value
    attention_out_bias: bool = True
    mlp_bias: bool = True

    # Embedding and output.
    token_types: int = 0
    embed_scale: float = 1.0
    tied: bool = True
    output_scale: float = 1.0  # of the hidden state before the LM head; T5 when tied: width ** -0.5
    output_bias: bool = False
    pooling: str = ""  # what stands for a sequence, see heads.Heads; "": the family's own

    # Dropout, by part.
    embed_dropout: float = 0.0
    attention_dropout: float = 0.0  # of the probabilities
    residual_dropout: float = 0.0  # of what each part adds to the residual stream
    mlp_dropout: float = 0.0  # of the hidden layer
    output_dropout: float = 0.0  # of the final hidden state
    head_dropout: float = 0.0  # of the vector that a classifier reads

    # Initialisation.
    init: str = "normal"
    init_std: float = 0.02
    scale_residual_init: bool = False  # GPT-2: output projections by (2 N) ** -0.5

    # Numbers and compilation.
    dtype: str = "float32"  # of matrix products and activations; norms and softmax are float32
    param_dtype: str = "float32"
    scan_layers: bool = True  # False: the layers are unrolled, with the same parameters
    remat: str = "cheap"  # what is kept for the backward pass, see transformer.REMAT

    def __post_init__(self):
        set_ = object.__setattr__  # the dataclass is frozen
        check_positive(self, "vocab_size", "vocab_multiple", "width", "num_layers", "num_heads")
        if not self.head_dim and self.width % self.num_heads:
            raise ConfigError(
                f"model.width={self.width} is not a multiple of num_heads={self.num_heads}; "
                "change one or set head_dim"
            )
        set_(self, "num_decoder_layers", self.num_decoder_layers or self.num_layers)
        set_(self, "num_kv_heads", self.num_kv_heads or self.num_heads)
        set_(self, "head_dim", self.head_dim or self.width // self.num_heads)
        set_(self, "mlp_width", self.mlp_width or 4 * self.width)
        set_(self, "windows", tuple(self.windows))
        check_positive(self, "num_kv_heads", "head_dim", "mlp_width", "max_length")
        check_positive(self, "num_decoder_layers")
        check_rates(self)
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(
                f"model.num_heads={self.num_heads} is not a multiple of "
                f"num_kv_heads={self.num_kv_heads}"
            )
        if any(window < 0 for window in self.windows):
            raise ConfigError(f"model.windows={self.windows}: sizes are 0 (no limit) or more")
        if self.positions == "rotary" and self.head_dim % 2:
            raise ConfigError(f"model.head_dim={self.head_dim} must be even for rotary positions")
        if self.positions == "sinusoidal" and self.width % 2:
            raise ConfigError(f"model.width={self.width} must be even for sinusoidal positions")
        if self.relative_buckets < 4 or self.relative_max_distance <= self.relative_buckets // 2:
            raise ConfigError(
                f"model.relative_buckets={self.relative_buckets} must be at least 4 and "
                f"relative_max_distance={self.relative_max_distance} above half of it"
            )
        for name, valid in (
            ("norm", NORMS),
            ("norm_position", NORM_POSITIONS),
            ("positions", POSITIONS),
            ("activation", ACTIVATIONS),
            ("attention", ATTENTIONS),
            ("init", INITS),
            ("pooling", POOLINGS),
            ("remat", REMATS),
            ("dtype", DTYPES),
            ("param_dtype", DTYPES),
        ):
            choose(f"model.{name}", getattr(self, name), valid)

    @property
    def queries_per_head(self) -> int:
        """G: query heads that share one key/value head."""
        return self.num_heads // self.num_kv_heads

    @property
    def scale(self) -> float:
        """Factor of the attention scores."""
        return self.attention_scale or self.head_dim**-0.5


def padded_vocab(config) -> int:
    """Return the rows of the stored token table: `vocab_size` up to a `vocab_multiple`."""
    return -(-config.vocab_size // config.vocab_multiple) * config.vocab_multiple
