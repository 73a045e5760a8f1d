"""The values of config keys: in the types of their fields, or refused."""

import contextlib
import math
import types
import typing

from flaxlm.errors import ConfigError


def fit(kind, value):
    """Return `value` in the type `kind`; TypeError where that would change its meaning."""
    parts = typing.get_args(kind)
    if isinstance(kind, types.UnionType):
        for part in parts:
            with contextlib.suppress(TypeError):
                return fit(part, value)
        raise TypeError
    if parts and isinstance(value, list | tuple):  # tuple[part, ...]
        return tuple(fit(parts[0], item) for item in value)
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind or (kind is float and not math.isfinite(value)):
        raise TypeError
    return value


def coerce(key: str, kind, value):
    """Return `value` in the type of a config key; ConfigError where it is not of that type."""
    try:
        return fit(kind, value)
    except TypeError:
        name = kind if typing.get_args(kind) else f"{'finite ' * (kind is float)}{kind.__name__}"
        raise ConfigError(f"config key {key}={value!r} must be of type {name}") from None


def as_tuples(value):
    """Return a value of JSON with its lists as tuples."""
    if isinstance(value, dict):
        return {key: as_tuples(item) for key, item in value.items()}
    return tuple(as_tuples(item) for item in value) if isinstance(value, list) else value
