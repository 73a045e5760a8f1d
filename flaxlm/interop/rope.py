"""Rotary positions in `config.json`, in the spelling of either generation of its library.

The older one has `rope_theta`, `rope_scaling` and, by family, a fraction; the newer one
`rope_parameters`, which may hold a dictionary for each kind of layer.
"""

from flaxlm.errors import ConfigError, choose
from flaxlm.interop.spec import need

THETA = 10_000.0
# Our field of each parameter of a scaling.
SCALINGS: dict[str, dict[str, str]] = {"default": {}, "linear": {"factor": "rope_factor"}}
SCALINGS["llama3"] = SCALINGS["linear"] | {
    "low_freq_factor": "rope_low_frequency",
    "high_freq_factor": "rope_high_frequency",
    "original_max_position_embeddings": "rope_original_length",
}


def _pop_number(parameters: dict, name: str) -> float:
    value = parameters.pop(name)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    need(number and 0 < value < 1e12, f"{name}={value!r} must be a positive number")
    return float(value)


def _pop_dictionary(parameters: dict, name: str) -> dict:
    value = parameters.pop(name, None) or {}
    need(isinstance(value, dict), f"{name}={value!r} must be an object")
    return dict(value)


def read_shared(fields: dict, unread: dict, fraction: float = 1.0) -> None:
    """Pop the keys of one kind of rotary positions, and set the fields of ours."""
    shared = _pop_dictionary(unread, "rope_parameters") | _pop_dictionary(unread, "rope_scaling")
    shared.setdefault("rope_theta", unread.pop("rope_theta", THETA))
    shared.setdefault("partial_rotary_factor", unread.pop("partial_rotary_factor", fraction))
    _set(fields, shared)


def read_by_layer(fields: dict, unread: dict, theta: float, keys: tuple[str, str]) -> None:
    """Pop the keys of two kinds of layers; `keys` are the older names of the two thetas."""
    kinds = _pop_dictionary(unread, "rope_parameters")
    full = _pop_dictionary(kinds, "full_attention")
    near = _pop_dictionary(kinds, "sliding_attention")
    need(not kinds, f"rope_parameters: not understood: {', '.join(kinds)}")
    full |= _pop_dictionary(unread, "rope_scaling")
    full.setdefault("rope_theta", unread.pop(keys[0], theta))
    near.setdefault("rope_theta", unread.pop(keys[1], THETA))
    kind = near.pop("rope_type", "default")
    need(kind == "default", f"rope_type={kind!r} of sliding_attention is not supported")
    fields["rope_local_theta"] = _pop_number(near, "rope_theta")
    need(not near, f"rope_parameters: not understood: {', '.join(near)}")
    _set(fields, full)


def _set(fields: dict, parameters: dict) -> None:
    kind = parameters.pop("rope_type", parameters.pop("type", None) or "default")
    parameters.pop("type", None)
    if not isinstance(kind, str) or kind not in SCALINGS:
        choose("config.json: rope_parameters.rope_type", str(kind), SCALINGS)
    fields["rope_theta"] = _pop_number(parameters, "rope_theta")
    parameters.setdefault("partial_rotary_factor", 1.0)
    fraction = _pop_number(parameters, "partial_rotary_factor")
    head_dim = fields.get("head_dim") or fields["width"] // fields["num_heads"]
    fields["rotary_dim"] = int(head_dim * fraction)
    fields["rope_scaling"] = "" if kind == "default" else kind
    # Where it is not given, the length of pre-training is the whole length.
    if kind == "llama3":
        parameters.setdefault("original_max_position_embeddings", fields["max_length"])
    for key, ours in SCALINGS[kind].items():
        if key not in parameters:
            raise ConfigError(f"config.json: rope_type {kind!r} needs {key}")
        value = _pop_number(parameters, key)
        fields[ours] = int(value) if ours == "rope_original_length" else value
    parameters.pop("original_max_position_embeddings", None)
    unknown = ", ".join(parameters)
    need(not unknown, f"rope_parameters: not understood with rope_type {kind!r}: {unknown}")


def parameters(config) -> dict:
    """Return `rope_parameters` of a config, for all layers or those without a window."""
    kind = config.rope_scaling or "default"
    out = {"rope_type": kind, "rope_theta": config.rope_theta}
    out |= {key: getattr(config, ours) for key, ours in SCALINGS[kind].items()}
    if config.rotary_dim != config.head_dim:
        out["partial_rotary_factor"] = config.rotary_dim / config.head_dim
    return out


def parameters_by_layer(config) -> dict:
    """Return `rope_parameters` of a config whose layers with a window have a theta of their own."""
    local = {"rope_type": "default", "rope_theta": config.rope_local_theta}
    return {"full_attention": parameters(config), "sliding_attention": local}
