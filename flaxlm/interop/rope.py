"""Rotary positions in `config.json`, in the spelling of either generation of its library.

The older one has `rope_theta`, `rope_scaling` and, by family, a fraction; the newer one
`rope_parameters`, which may hold a dictionary for each kind of layer.
"""

from flaxlm.errors import ConfigError, choose
from flaxlm.interop.spec import need

# Our field of each parameter of a scaling.
SCALINGS = {
    "default": {},
    "linear": {"factor": "rope_factor"},
    "llama3": {
        "factor": "rope_factor",
        "low_freq_factor": "rope_low_frequency",
        "high_freq_factor": "rope_high_frequency",
        "original_max_position_embeddings": "rope_original_length",
    },
}


def _number(name: str, value) -> float:
    need(
        isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1e12,
        f"{name}={value!r} must be a positive number",
    )
    return float(value)


def _dictionary(name: str, value) -> dict:
    need(isinstance(value, dict), f"{name}={value!r} must be an object")
    return dict(value)


def read_shared(fields: dict, rest: dict, theta: float, fraction: float = 1.0) -> None:
    """Pop the keys of one kind of rotary positions, and set the fields of ours."""
    given = _dictionary("rope_parameters", rest.pop("rope_parameters", None) or {})
    given |= _dictionary("rope_scaling", rest.pop("rope_scaling", None) or {})
    given.setdefault("rope_theta", rest.pop("rope_theta", theta))
    given.setdefault("partial_rotary_factor", rest.pop("partial_rotary_factor", fraction))
    _set(fields, given, "rope_parameters", rest)


def read_by_layer(
    fields: dict, rest: dict, theta: float, local_theta: float, keys: tuple[str, str]
) -> None:
    """Pop the keys of two kinds of layers; `keys` are the older names of the two thetas."""
    given = _dictionary("rope_parameters", rest.pop("rope_parameters", None) or {})
    full = _dictionary("full_attention", given.pop("full_attention", None) or {})
    near = _dictionary("sliding_attention", given.pop("sliding_attention", None) or {})
    need(not given, f"rope_parameters: not understood: {', '.join(given)}")
    full |= _dictionary("rope_scaling", rest.pop("rope_scaling", None) or {})
    full.setdefault("rope_theta", rest.pop(keys[0], theta))
    near.setdefault("rope_theta", rest.pop(keys[1], local_theta))
    kind = near.pop("rope_type", "default")
    need(kind == "default", f"rope_type={kind!r} of sliding_attention is not supported")
    fields["rope_local_theta"] = _number("rope_theta", near.pop("rope_theta"))
    need(not near, f"rope_parameters: not understood: {', '.join(near)}")
    _set(fields, full, "rope_parameters", rest)


def _set(fields: dict, given: dict, name: str, rest: dict) -> None:
    kind = given.pop("rope_type", given.pop("type", None) or "default")
    given.pop("type", None)
    if not isinstance(kind, str) or kind not in SCALINGS:
        choose(f"config.json: {name}.rope_type", str(kind), SCALINGS)
    fields["rope_theta"] = _number("rope_theta", given.pop("rope_theta"))
    fraction = _number("partial_rotary_factor", given.pop("partial_rotary_factor", 1.0))
    head_dim = fields.get("head_dim") or fields["width"] // fields["num_heads"]
    fields["rotary_dim"] = int(head_dim * fraction)
    fields["rope_scaling"] = "" if kind == "default" else kind
    # Where it is not given, the length of pre-training is the whole length.
    if kind == "llama3":
        given.setdefault("original_max_position_embeddings", fields["max_length"])
    for key, ours in SCALINGS[kind].items():
        if key not in given:
            raise ConfigError(f"config.json: rope_type {kind!r} needs {key}")
        value = _number(key, given.pop(key))
        fields[ours] = int(value) if ours == "rope_original_length" else value
    given.pop("original_max_position_embeddings", None)
    need(not given, f"{name}: not understood with rope_type {kind!r}: {', '.join(given)}")


def parameters(config) -> dict:
    """Return `rope_parameters` of a config, for all layers or those without a window."""
    kind = config.rope_scaling or "default"
    out = {"rope_type": kind, "rope_theta": config.rope_theta}
    out |= {key: getattr(config, ours) for key, ours in SCALINGS[kind].items()}
    if config.rotary_dim != config.head_dim:
        out["partial_rotary_factor"] = config.rotary_dim / config.head_dim
    return out


def local_parameters(config) -> dict:
    """Return `rope_parameters` of the layers with a window."""
    return {"rope_type": "default", "rope_theta": config.rope_local_theta}
