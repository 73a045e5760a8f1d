"""The one configuration of the three Transformer families: a field for every architectural choice.

Dimension key of all model code: B batch, L length, M memory length, D model width, H key/value
heads, G queries per key/value head, K head size, F feed-forward width, V vocabulary, N layers,
P predicted positions, C classes.
"""

import dataclasses

from flaxlm.errors import ConfigError, check_range, choose

ACTIVATIONS = ("gelu", "gelu_tanh", "relu", "silu", "tanh")
DTYPES = ("float32", "bfloat16", "float16")
CHOICES = {
    "norm": ("layernorm", "rmsnorm"),
    "norm_position": ("pre", "post", "sandwich"),
    "positions": ("learned", "sinusoidal", "rotary", "relative", "none"),
    "activation": ACTIVATIONS,
    "init": ("normal", "t5"),
    "pooling": ("", "first", "last", "mean"),
    "pooler": ("", "none", "dense", "transform"),
    "pooler_activation": ACTIVATIONS,
    "transform_activation": ("", *ACTIVATIONS),
    "rope_scaling": ("", "linear", "llama3"),
    "remat": ("none", "cheap", "dots", "full"),
    "dtype": DTYPES,
    "param_dtype": DTYPES,
}


def check_fields(config, **choices) -> None:
    """Raise ConfigError for a `_dropout` outside [0, 1), or a value that is none of its choices.

    Those are a field's `choices`, or its CHOICES.
    """
    choices = CHOICES | choices
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name.endswith("_dropout") and not 0 <= value < 1:
            raise ConfigError(f"model.{field.name}={value} must be at least 0 and below 1")
        if field.name in choices:
            choose(f"model.{field.name}", value, choices[field.name])


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """Architecture of an encoder, a decoder or an encoder-decoder.

    Sizes that are 0 take the usual value: `num_kv_heads` = `num_heads`, `head_dim` =
    `width` / `num_heads`, `mlp_width` = 4 · `width`, `num_decoder_layers` = `num_layers`.
    """

    # Sizes.
    vocab_size: int = 8192  # ids; 0: what the tokenizer has
    vocab_multiple: int = 128  # the token table is stored with its rows padded to a multiple
    width: int = 256  # D
    embed_width: int = 0  # of the tables; if not `width`, it is projected to that (ALBERT)
    num_layers: int = 4  # of the encoder, in an encoder-decoder
    num_decoder_layers: int = 0  # encoder-decoder only
    share_layers: bool = False  # all layers have the same parameters (ALBERT)
    num_heads: int = 4  # of the queries
    num_kv_heads: int = 0  # 1: multi-query; between 1 and num_heads: grouped-query
    head_dim: int = 0  # 0: width / num_heads
    mlp_width: int = 0  # 0: 4 · width
    max_length: int = 512  # positions of the learned table

    # Norms.
    norm: str = "layernorm"  # layernorm, rmsnorm
    norm_position: str = "pre"  # sandwich: before and behind each part (Gemma 2)
    norm_epsilon: float = 1e-5  # added to the variance
    norm_bias: bool = True  # of LayerNorm
    norm_offset: float = 0.0  # added to the stored scale, which then starts at 0 (Gemma: 1)
    first_norm: bool = True  # False: no norm before the first layer's attention (ModernBERT)
    embed_norm: bool = False  # BERT
    final_norm: bool = True  # after the last layer
    parallel: bool = False  # attention and feed-forward read the same x (GPT-NeoX)

    # Positions and attention.
    positions: str = "learned"  # learned, sinusoidal, rotary, relative, none
    position_offset: int = 0  # rows before those of `max_length` that no position uses (RoBERTa: 2)
    separate_positions: bool = False  # each side has its own table and embed_norm (BART)
    rope_theta: float = 10_000.0  # base of the rotary rates
    rope_local_theta: float = 0.0  # of layers with a window; 0: rope_theta (Gemma 3)
    rotary_dim: int = 0  # how many of each head's dimensions are rotated; 0: all (GPT-NeoX)
    rope_scaling: str = ""  # see attention.rotary_rates; not of layers with a local theta
    rope_factor: float = 1.0  # of rope_scaling
    rope_low_frequency: float = 1.0  # of llama3 scaling
    rope_high_frequency: float = 4.0  # of llama3 scaling
    rope_original_length: int = 8192  # of llama3 scaling
    relative_buckets: int = 32  # of T5's relative positions
    relative_max_distance: int = 128  # from which on all share a bucket
    windows: tuple[int, ...] = ()  # per layer, repeated as a pattern; 0: unlimited
    attention: str = "einsum"  # a key of ATTENTION
    attention_scale: float = 0.0  # of the scores; 0: head_dim ** -0.5; T5: 1
    attention_softcap: float = 0.0  # c · tanh(scores / c); 0: off (Gemma 2)
    qk_norm: bool = False  # RMSNorm over each head of queries and keys (Qwen3)

    # Feed-forward, biases.
    activation: str = "gelu_tanh"  # gelu, gelu_tanh, relu, silu, tanh
    gated: bool = False  # a product of two projections, one activated (GLU)
    attention_bias: bool = True  # of query, key and value
    attention_out_bias: bool = True  # of the output projection
    mlp_bias: bool = True  # of both projections

    # Embedding and output.
    token_types: int = 0  # rows of a table of segment types; 0: none
    embed_scale: float = 1.0  # of the token table's rows
    tied: bool = True  # the LM head's kernel is the token table
    output_scale: float = 1.0  # of the hidden state before the LM head; T5 when tied: width ** -0.5
    output_softcap: float = 0.0  # of the LM head's logits; 0: off
    output_bias: bool = False  # of the LM head
    pooling: str = ""  # which state represents a sequence, see heads.Heads; "": the family's
    pooler: str = ""  # what that state passes through; "": dense for `first`, else none
    pooler_activation: str = "tanh"  # of a dense pooler
    transform_activation: str = ""  # of the masked-LM head's transform; "": `activation`
    transform_bias: bool = True  # of the transform
    mlm_bias: bool = True  # of the masked-LM head's output
    classification_bias: bool = True  # of the classifier

    # Dropout, by part.
    embed_dropout: float = 0.0  # of the embeddings
    attention_dropout: float = 0.0  # of the probabilities
    residual_dropout: float = 0.0  # of each part's addition to the residual stream
    mlp_dropout: float = 0.0  # of the hidden layer
    output_dropout: float = 0.0  # of the final hidden state
    head_dropout: float = 0.0  # of the vector that a classifier reads

    # Initialisation.
    init: str = "normal"  # normal, t5
    init_std: float = 0.02  # of the normal distribution
    scale_residual_init: bool = False  # GPT-2: output projections by (2 N) ** -0.5

    # Numbers and compilation.
    dtype: str = "float32"  # of matrix products and activations; norms and softmax are float32
    param_dtype: str = "float32"  # of the stored parameters
    scan_layers: bool = True  # False: the layers are unrolled, with the same parameters
    remat: str = "cheap"  # what is kept for the backward pass, see transformer.REMAT

    def __post_init__(self):
        from flaxlm.models.attention import ATTENTION  # which imports this class

        sizes = ("vocab_multiple", "width", "num_layers", "num_heads")
        check_range("model", self, *sizes, low=1)
        if not self.head_dim and self.width % self.num_heads:
            raise ConfigError(
                f"model.width={self.width} is not a multiple of num_heads={self.num_heads}; "
                "change one or set head_dim"
            )
        head_dim = self.head_dim or self.width // self.num_heads
        usual = {
            "num_decoder_layers": self.num_layers,
            "num_kv_heads": self.num_heads,
            "head_dim": head_dim,
            "mlp_width": 4 * self.width,
            "embed_width": self.width,
            "rotary_dim": head_dim,
        }
        for name, size in usual.items():
            object.__setattr__(self, name, getattr(self, name) or size)
        object.__setattr__(self, "windows", tuple(self.windows))
        sizes = ("num_kv_heads", "head_dim", "mlp_width", "max_length", "num_decoder_layers")
        check_range("model", self, *sizes, low=1)
        check_range("model", self, "vocab_size")  # 0: as many as the tokenizer has
        check_range("model", self, "attention_softcap", "output_softcap", "position_offset")
        check_fields(self, attention=ATTENTION)
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(
                f"model.num_heads={self.num_heads} is not a multiple of "
                f"num_kv_heads={self.num_kv_heads}"
            )
        if any(window < 0 for window in self.windows):
            raise ConfigError(f"model.windows={self.windows}: sizes are 0 (no limit) or more")
        odd_rotary = self.rotary_dim % 2 or not 0 < self.rotary_dim <= self.head_dim
        if self.positions == "rotary" and odd_rotary:
            raise ConfigError(
                f"model.rotary_dim={self.rotary_dim} must be even and at most "
                f"head_dim={self.head_dim} for rotary positions"
            )
        if self.positions == "sinusoidal" and self.embed_width % 2:
            raise ConfigError(
                f"model.embed_width={self.embed_width} must be even for sinusoidal positions"
            )
        if self.parallel and self.norm_position != "pre":
            raise ConfigError("model.parallel=True needs model.norm_position='pre'")
        if not self.first_norm and self.norm_position == "post":
            raise ConfigError("model.first_norm=False needs a norm_position that is not 'post'")
        if self.relative_buckets < 4 or self.relative_max_distance <= self.relative_buckets // 2:
            raise ConfigError(
                f"model.relative_buckets={self.relative_buckets} must be at least 4 and "
                f"relative_max_distance={self.relative_max_distance} above half of it"
            )

    @property
    def queries_per_head(self) -> int:
        """G: query heads that share one key/value head."""
        return self.num_heads // self.num_kv_heads

    @property
    def scale(self) -> float:
        """Factor of the attention scores."""
        return self.attention_scale or self.head_dim**-0.5


def padded_vocab(config) -> int:
    """Return the rows of the stored token table: `vocab_size` rounded up to a `vocab_multiple`."""
    return -(-config.vocab_size // config.vocab_multiple) * config.vocab_multiple
