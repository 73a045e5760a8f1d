"""Published architectures by name; every field can be overridden in a config."""

_DROPOUT = dict.fromkeys(("embed_dropout", "attention_dropout", "residual_dropout"), 0.1)
_NO_BIAS = dict.fromkeys(("attention_bias", "attention_out_bias", "mlp_bias"), False)
_BERT = {
    "name": "encoder",
    "vocab_size": 30_522,
    "max_length": 512,
    "norm_position": "post",
    "norm_epsilon": 1e-12,
    "embed_norm": True,
    "final_norm": False,
    "activation": "gelu",
    "token_types": 2,
    "head_dropout": 0.1,
    **_DROPOUT,
}
_GPT2 = {
    "name": "decoder",
    "vocab_size": 50_257,
    "max_length": 1024,
    "scale_residual_init": True,
    **_DROPOUT,
}
_T5 = {
    "name": "encoder_decoder",
    "vocab_size": 32_128,
    "head_dim": 64,
    "norm": "rmsnorm",
    "norm_epsilon": 1e-6,
    "positions": "relative",
    "attention_scale": 1.0,
    "activation": "relu",
    "mlp_dropout": 0.1,
    "output_dropout": 0.1,
    "init": "t5",
    **_DROPOUT,
    **_NO_BIAS,
}
_T5_V1_1 = _T5 | {"activation": "gelu_tanh", "gated": True, "tied": False}
_LLAMA2 = {
    "name": "decoder",
    "vocab_size": 32_000,
    "max_length": 4096,
    "norm": "rmsnorm",
    "norm_epsilon": 1e-5,
    "positions": "rotary",
    "activation": "silu",
    "gated": True,
    "tied": False,
    **_NO_BIAS,
}


def _size(width: int, num_layers: int, num_heads: int, **more) -> dict:
    return {"width": width, "num_layers": num_layers, "num_heads": num_heads, **more}


def _tied_t5(width: int, num_layers: int, num_heads: int, mlp_width: int) -> dict:
    # With the table shared, T5 scales the hidden state instead of the logits' kernel.
    scale = {"output_scale": width**-0.5}
    return _T5 | _size(width, num_layers, num_heads, mlp_width=mlp_width) | scale


# BERT: Devlin et al., 2018; its small sizes: Turc et al., 2019. GPT-2: Radford et al., 2019.
# T5: Raffel et al., 2020; v1.1: its released checkpoints. Llama 2: Touvron et al., 2023.
PRESETS: dict[str, dict] = {
    "bert_tiny": _BERT | _size(128, 2, 2),
    "bert_mini": _BERT | _size(256, 4, 4),
    "bert_small": _BERT | _size(512, 4, 8),
    "bert_medium": _BERT | _size(512, 8, 8),
    "bert_base": _BERT | _size(768, 12, 12),
    "bert_large": _BERT | _size(1024, 24, 16),
    "gpt2": _GPT2 | _size(768, 12, 12),
    "gpt2_medium": _GPT2 | _size(1024, 24, 16),
    "gpt2_large": _GPT2 | _size(1280, 36, 20),
    "gpt2_xl": _GPT2 | _size(1600, 48, 25),
    "t5_small": _tied_t5(512, 6, 8, 2048),
    "t5_base": _tied_t5(768, 12, 12, 3072),
    "t5_large": _tied_t5(1024, 24, 16, 4096),
    "t5_v1_1_small": _T5_V1_1 | _size(512, 8, 6, mlp_width=1024),
    "t5_v1_1_base": _T5_V1_1 | _size(768, 12, 12, mlp_width=2048),
    "llama2_7b": _LLAMA2 | _size(4096, 32, 32, mlp_width=11_008),
}
