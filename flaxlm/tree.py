"""Nested trees by path: names, first-match rules, counts and digests.

A path is the keys from the root joined by `/` (`params/layers/attention/query/kernel`); rules are
`(regex, value)` pairs searched in order. Sharding, weight decay, partial loading and checkpoints
all select parameters through the same two functions.
"""

import difflib
import hashlib
import math
import os
import re
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from flaxlm.errors import ConfigError

Rules = Iterable[tuple[str, Any]]


def _path(keys) -> str:
    return jax.tree_util.keystr(keys, simple=True, separator="/")


def flatten(tree) -> dict[str, Any]:
    """Return `{path: leaf}` in the tree's own order."""
    return {_path(keys): leaf for keys, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def unflatten(flat: dict[str, Any]) -> dict:
    """Return the nested dict whose `flatten` is `flat`; every key becomes a dict key."""
    return traverse_util.unflatten_dict(flat, sep="/")


def split(tree, chosen: Callable[[str], bool]) -> tuple[dict, dict]:
    """Return the leaves whose path is chosen, and the others: nested dicts, no empty branches."""
    flat = flatten(tree)
    first = {path: leaf for path, leaf in flat.items() if chosen(path)}
    return unflatten(first), unflatten({p: leaf for p, leaf in flat.items() if p not in first})


def merge(*trees: dict) -> dict:
    """Return the nested dict of all leaves; where two trees share a path, the later one wins."""
    flat: dict = {}
    for part in trees:
        flat |= flatten(part)
    return unflatten(flat)


def map_paths(fn: Callable, tree, *others):
    """Map `fn(path, leaf, *other_leaves)` over a tree."""
    return jax.tree_util.tree_map_with_path(
        lambda keys, *leaves: fn(_path(keys), *leaves), tree, *others
    )


def first_match(rules: Rules, path: str, default=None):
    """Return the value of the first rule whose regex is found in `path`."""
    for pattern, value in rules:
        if re.search(pattern, path):
            return value
    return default


def select(what: str, patterns: Iterable[str], paths: Iterable[str]) -> set[str]:
    """Return the paths in which one of the regexes of the config key `what` is found.

    ConfigError names the nearest paths for a regex that is found in none.
    """
    paths, chosen = list(paths), set()
    for pattern in patterns:
        matching = {path for path in paths if re.search(pattern, path)}
        if not matching:
            near = sorted(paths, key=lambda path: -_likeness(pattern, path))[:3]
            raise ConfigError(
                f"{what}: {pattern!r} matches no parameter; the nearest are: {', '.join(near)}"
            )
        chosen |= matching
    return chosen


def pattern_of(paths: Iterable[str]) -> str:
    """Return a regex that matches these paths: what they begin with alike, or each by itself."""
    paths = list(paths)
    start = os.path.commonpath(paths)
    return f"^{start}" if start else "|".join(f"^{path}$" for path in paths)


def _likeness(pattern: str, path: str) -> float:
    """Return how similar a pattern is to the part of a path with as many names, in [0, 1]."""
    names, size = path.split("/"), pattern.count("/") + 1
    windows = ["/".join(names[i : i + size]) for i in range(max(1, len(names) - size + 1))]
    return max(difflib.SequenceMatcher(None, pattern, window).ratio() for window in windows)


def check_patterns(what: str, patterns: Iterable[str]) -> None:
    """Raise ConfigError for a pattern of the config key `what` that is not a regex."""
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ConfigError(f"{what}: {pattern!r} is not a regex: {error}") from None


def required_match(rules: Rules, path: str):
    """Return the value of the first rule whose regex is found in `path`; ConfigError if none is."""
    missing = object()
    value = first_match(rules, path, missing)
    if value is missing:
        raise ConfigError(f"no rule matches the parameter {path!r}; add a row for it")
    return value


def count(tree) -> int:
    """Return the number of elements in all leaves (abstract ones too)."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def nbytes(tree) -> int:
    """Return the number of bytes of all leaves (abstract ones too)."""
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize for leaf in leaves)


def _bits(x: jax.Array) -> jax.Array:
    """Return the bit pattern of each element as uint32 [..., words]."""
    if x.dtype == jnp.bool_:
        x = x.astype(jnp.uint8)
    width = np.dtype(x.dtype).itemsize
    if width == 8:
        return jax.lax.bitcast_convert_type(x, jnp.uint32)
    unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[width]
    return jax.lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32)[..., None]


def digest(x: jax.Array) -> jax.Array:
    """Return Σ mix(bits, index) mod 2³² of one array, as a uint32 scalar on the device.

    The sum runs over elements with their global index mixed in, so the value is the same for
    every sharding and order of reduction, and changes with any bit and any swap of two elements.
    The mixer is the 32-bit finaliser of MurmurHash3 (Appleby, 2011).
    """
    bits = _bits(jnp.asarray(x))
    index = jnp.zeros(bits.shape, jnp.uint32)
    for axis, size in enumerate(bits.shape):
        step = jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
        index = index * jnp.uint32(size % 2**32) + step
    h = bits ^ (index * jnp.uint32(0x9E3779B1) + jnp.uint32(0x7F4A7C15))
    h = (h ^ (h >> 16)) * jnp.uint32(0x85EBCA6B)
    h = (h ^ (h >> 13)) * jnp.uint32(0xC2B2AE35)
    return jnp.sum(h ^ (h >> 16), dtype=jnp.uint32)


_compiled_digest = jax.jit(digest)  # a program for each shape, which parameters and moments share


def _digest_on_host(x: np.ndarray) -> int:
    """Return `digest` of an array without compiling anything for its shape."""
    bits = np.ascontiguousarray(x).reshape(-1).view(f"u{min(x.dtype.itemsize, 4)}")
    index = np.arange(bits.size, dtype=np.uint32)
    h = bits ^ (index * np.uint32(0x9E3779B1) + np.uint32(0x7F4A7C15))
    h = (h ^ (h >> 16)) * np.uint32(0x85EBCA6B)
    h = (h ^ (h >> 13)) * np.uint32(0xC2B2AE35)
    return int(np.sum(h ^ (h >> 16), dtype=np.uint32))


HOST_BYTES = 2**20  # of a leaf: fetching it takes less time than compiling for its shape


def digests(tree) -> dict[str, str]:
    """Return `{path: 8 hexadecimal digits}` of the leaves; large ones are read where they lie."""

    def value(leaf):
        if leaf.nbytes > HOST_BYTES or not getattr(leaf, "is_fully_addressable", True):
            return _compiled_digest(leaf)
        return _digest_on_host(np.asarray(leaf, jax.dtypes.canonicalize_dtype(leaf.dtype)))

    values = {path: value(leaf) for path, leaf in flatten(tree).items()}
    return {path: f"{value:08x}" for path, value in jax.device_get(values).items()}


def finite(tree) -> bool:
    """Return whether every number of the leaves is finite; large ones are read where they lie."""

    def value(leaf):
        there = leaf.nbytes > HOST_BYTES or not getattr(leaf, "is_fully_addressable", True)
        return jnp.isfinite(leaf).all() if there else np.isfinite(np.asarray(leaf)).all()

    return all(jax.device_get([value(leaf) for leaf in jax.tree.leaves(tree)]))


def digest_of(tree) -> str:
    """Return one 16-digit hexadecimal digest of a whole tree, its paths included."""
    return combined(digests(tree))


def combined(digests: dict[str, str]) -> str:
    """Return `digest_of` the tree that has these `digests`."""
    text = "\n".join(f"{path} {value}" for path, value in sorted(digests.items()))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
