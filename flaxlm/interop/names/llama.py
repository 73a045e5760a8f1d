"""Llama 2 and 3 (Touvron et al., 2023) and what is built alike: Mistral, Qwen 2, 3, Gemma 2, 3.

One table of names; the families differ in a few fields.
"""

from collections.abc import Callable

from flaxlm.interop import rope
from flaxlm.interop.patterns import ANSWERS, NO_BIAS, attention, layers, one_module
from flaxlm.interop.spec import Family, Head, Key, Row, activation, need, sizes

_NORMS = {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
_SANDWICH = {
    "attention_norm": "input_layernorm",
    "attention_post_norm": "post_attention_layernorm",
    "mlp_norm": "pre_feedforward_layernorm",
    "mlp_post_norm": "post_feedforward_layernorm",
}


def _rows(config) -> list[Row]:
    names = {
        **attention("self_attn", "q_proj k_proj v_proj o_proj"),
        "attention/query_norm": "self_attn.q_norm",
        "attention/key_norm": "self_attn.k_norm",
        "mlp/gate": "mlp.gate_proj",
        "mlp/up": "mlp.up_proj",
        "mlp/down": "mlp.down_proj",
        **(_SANDWICH if config.norm_position == "sandwich" else _NORMS),
    }
    return [
        Row("embed/token", "~embed_tokens.weight"),
        *layers("decoder/layers", "~layers.{n}", names),
        Row("decoder/final_norm", "~norm"),
    ]


def _keys(*own_sizes: int, kv_heads=None, head_dim=None, tied=False, act=("hidden_act", "silu")):
    """Return the keys that all have, with a family's own defaults; for `own_sizes` see `sizes`."""
    return (
        *sizes(*own_sizes),
        Key("num_key_value_heads", "num_kv_heads", kv_heads, lambda n: n or 0),
        Key("head_dim", "head_dim", head_dim, lambda n: n or 0),
        activation(*act),
        Key("rms_norm_eps", "norm_epsilon", 1e-6),
        Key("attention_dropout", "attention_dropout", 0.0),
        Key("tie_word_embeddings", "tied", tied),
    )


_CONSTANTS = NO_BIAS | {
    "norm": "rmsnorm",
    "positions": "rotary",
    "gated": True,
    "classification_bias": False,
}
_BIAS = Key("attention_bias", "attention_bias attention_out_bias", False)
_CLASSES = {
    "Model": Head(),
    "ForCausalLM": one_module("lm", "lm_head"),
    "ForSequenceClassification": one_module("classification", "score"),
    "ForTokenClassification": one_module("token_classification", "score"),
    "ForQuestionAnswering": ANSWERS,
}
# Three of the families call their backbone otherwise in this one class.
_OLD = _CLASSES | {"ForQuestionAnswering": ANSWERS._replace(prefix="transformer")}
_SLIDING = {"sliding_attention": True, "full_attention": False}


def windows(fields: dict, unread: dict, size, default: Callable[[int], bool]) -> None:
    """Pop `layer_types`, and set each layer's window: `size` where the layer slides.

    `default` says of a layer whether it slides where the types are not given.
    """
    number = fields["num_layers"]
    types = unread.pop("layer_types", None)
    if types is None:
        types = [("full_attention", "sliding_attention")[default(i)] for i in range(number)]
    need(
        isinstance(types, list) and len(types) == number and all(t in _SLIDING for t in types),
        f"layer_types must name one of {', '.join(_SLIDING)} for each of {number} layers",
    )
    slides = [_SLIDING[kind] for kind in types]
    need(
        not any(slides) or (isinstance(size, int) and size > 0),
        f"layers slide, but their window is {size!r}",
    )
    fields["windows"] = tuple(size * slide for slide in slides) if any(slides) else ()


def layer_types(config) -> tuple[list[str], int | None]:
    """Return (the type of each layer, their window or None) to write."""
    pattern = config.windows or (0,)
    each = [pattern[i % len(pattern)] for i in range(config.num_layers)]
    need(len(set(each) - {0}) < 2, "windows of different sizes have no counterpart")
    types = ["sliding_attention" if window else "full_attention" for window in each]
    return types, max(each) or None


def _write_rope(config, out: dict) -> None:
    out["rope_parameters"] = rope.parameters(config)
    out["rope_theta"] = config.rope_theta
    scaling = {k: v for k, v in out["rope_parameters"].items() if k != "rope_theta"}
    out["rope_scaling"] = scaling if config.rope_scaling else None


def _finish_mistral(fields: dict, unread: dict) -> None:
    rope.read_shared(fields, unread)
    size = unread.pop("sliding_window", 4096)
    windows(fields, unread, size, lambda i: size is not None)


def _write_mistral(config, out: dict) -> None:
    _write_rope(config, out)
    types, out["sliding_window"] = layer_types(config)
    need(len(set(types)) == 1, "Mistral's layers all slide or none does")


def _finish_qwen(fields: dict, unread: dict) -> None:
    rope.read_shared(fields, unread)
    used = unread.pop("use_sliding_window", False)
    size, first = unread.pop("sliding_window", 4096), unread.pop("max_window_layers", 28)
    windows(fields, unread, size, lambda i: used and size is not None and i >= first)


def _write_qwen(config, out: dict) -> None:
    _write_rope(config, out)
    out["layer_types"], out["sliding_window"] = layer_types(config)
    out["use_sliding_window"] = out["sliding_window"] is not None


def _finish_gemma(fields: dict, unread: dict) -> None:
    fields["embed_scale"] = fields["width"] ** 0.5
    scalar = unread.pop("query_pre_attn_scalar", 256)
    need(isinstance(scalar, int | float) and scalar > 0, f"query_pre_attn_scalar={scalar!r}")
    fields["attention_scale"] = scalar**-0.5


def _finish_gemma2(fields: dict, unread: dict) -> None:
    _finish_gemma(fields, unread)
    rope.read_shared(fields, unread)
    windows(fields, unread, unread.pop("sliding_window", 4096), lambda i: i % 2 == 0)


def _finish_gemma3(fields: dict, unread: dict) -> None:
    _finish_gemma(fields, unread)
    rope.read_by_layer(fields, unread, 1_000_000.0, ("rope_theta", "rope_local_base_freq"))
    pattern = unread.pop("sliding_window_pattern", unread.pop("_sliding_window_pattern", 6))
    need(isinstance(pattern, int) and pattern > 0, f"sliding_window_pattern={pattern!r}")
    windows(fields, unread, unread.pop("sliding_window", 4096), lambda i: (i + 1) % pattern != 0)


def _write_gemma(config, out: dict) -> None:
    need(abs(config.embed_scale - config.width**0.5) < 1e-6, "embed_scale is not √width")
    scalar = config.scale**-2
    out["query_pre_attn_scalar"] = round(scalar) if abs(scalar - round(scalar)) < 1e-3 else scalar
    out["layer_types"], out["sliding_window"] = layer_types(config)
    out["head_dim"] = config.head_dim


def _write_gemma2(config, out: dict) -> None:
    _write_gemma(config, out)
    _write_rope(config, out)


def _write_gemma3(config, out: dict) -> None:
    _write_gemma(config, out)
    out["rope_parameters"] = rope.parameters_by_layer(config)
    out["rope_theta"], out["rope_local_base_freq"] = config.rope_theta, config.rope_local_theta


def _family(kind: str, begin: str, keys, constants, finish, finish_write, **more) -> Family:
    return Family(
        model_types={kind: begin},
        model="decoder",
        prefix="model",
        keys=keys,
        fixed={},
        constants=_CONSTANTS | constants,
        rows=_rows,
        finish=finish,
        finish_write=finish_write,
        **{"classes": _CLASSES} | more,
    )


_GEMMA = {"norm_position": "sandwich", "norm_offset": 1.0}
_GEMMA_KEYS = {"kv_heads": 4, "head_dim": 256, "tied": True}
_GEMMA_KEYS["act"] = ("hidden_activation", "gelu_pytorch_tanh")


def _caps(*defaults: float | None) -> list[Key]:
    names = ("attn_logit_softcapping", "final_logit_softcapping")
    ours = ("attention_softcap", "output_softcap")
    both = (lambda cap: float(cap or 0), lambda cap: cap or None)
    return [Key(*key, *both) for key in zip(names, ours, defaults, strict=True)]


FAMILIES: tuple[Family, ...] = (
    _family(
        *("llama", "Llama"),
        (*_keys(32_000, 4096, 32, 32, 11_008, 2048), _BIAS, Key("mlp_bias", "mlp_bias", False)),
        {},
        *(rope.read_shared, _write_rope),
        classes=_OLD,
        # How a product was once split: the same numbers.
        unused=("pretraining_tp",),
    ),
    _family(
        *("mistral", "Mistral"),
        _keys(32_000, 4096, 32, 32, 14_336, 131_072, kv_heads=8),
        {},
        *(_finish_mistral, _write_mistral),
    ),
    _family(
        *("qwen2", "Qwen2"),
        _keys(151_936, 4096, 32, 32, 22_016, 32_768, kv_heads=32),
        {"attention_bias": True},
        *(_finish_qwen, _write_qwen),
        classes=_OLD,
    ),
    _family(
        *("qwen3", "Qwen3"),
        (*_keys(151_936, 4096, 32, 32, 22_016, 32_768, kv_heads=32, head_dim=128), _BIAS),
        {"qk_norm": True},
        *(_finish_qwen, _write_qwen),
        classes=_OLD,
    ),
    _family(
        *("gemma2", "Gemma2"),
        (*_keys(256_000, 2304, 26, 8, 9216, 8192, **_GEMMA_KEYS), _BIAS, *_caps(50.0, 30.0)),
        _GEMMA,
        *(_finish_gemma2, _write_gemma2),
        classes={end: h for end, h in _CLASSES.items() if end != "ForQuestionAnswering"},
        unused=("hidden_act", "sliding_window_size"),
    ),
    _family(
        *("gemma3_text", "Gemma3"),
        (*_keys(262_208, 2304, 26, 8, 9216, 131_072, **_GEMMA_KEYS), _BIAS, *_caps(None, None)),
        _GEMMA | {"qk_norm": True},
        *(_finish_gemma3, _write_gemma3),
        classes={
            "TextModel": _CLASSES["Model"],
            "ForCausalLM": _CLASSES["ForCausalLM"],
            "TextForSequenceClassification": _CLASSES["ForSequenceClassification"],
        },
        unused=("hidden_act",),
    ),
)
