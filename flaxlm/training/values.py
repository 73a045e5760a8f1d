"""The values of config keys: in the types of their fields, or refused; which differ in a run."""

import contextlib
import math
import types
import typing

from flaxlm.errors import ConfigError

# What a resumed run may change: how long, how often, how it is shown and saved, where it runs.
FREE = (
    "seeds", "baseline", "train.steps", "train.tokens", "train.epochs", "train.log_every",
    "train.profile_steps", "train.stuck_after", "train.skip_nonfinite", "eval.every",
    "eval.batch_size", "checkpoint.", "sharding.", "data.workers", "data.threads",
    "data.prefetch", "data.cache_dir", "data.verify", "data.test_path",
)  # fmt: skip
PLACES = ("data.path", "data.valid_path")  # where data lies, which is compared by what it holds


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


def changes(old: dict, new: dict, moved: bool = False, free: tuple[str, ...] = FREE) -> list[str]:
    """Return a line for each key of a config that differs, but for those that begin as in `free`.

    `moved`: whether those in `PLACES` may differ as well.
    """
    lines, free = [], free + PLACES * moved
    for section in sorted(old.keys() | new.keys()):
        before, after = old.get(section), new.get(section)
        if not isinstance(before, dict) or not isinstance(after, dict):
            before, after = {"": before}, {"": after}
        for key in sorted(before.keys() | after.keys()):
            path = f"{section}.{key}" if key else section
            differ = as_tuples(before.get(key)) != as_tuples(after.get(key))
            if differ and not path.startswith(free):
                lines.append(f"{path}: {before.get(key)!r} -> {after.get(key)!r}")
    return lines
