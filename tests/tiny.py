"""The one tiny size of the model tests, and parameters drawn without compiling anything."""

import functools

import jax
import numpy as np

from flaxlm import tree
from flaxlm.models import MODELS, abstract_params, build

V, D, B, L, M = 37, 16, 2, 11, 9
SMALL = {"vocab_size": V, "vocab_multiple": 8, "width": D, "num_layers": 2}
HEADS = {"lm": 0}


def config(family, **fields):
    transformer = {} if family == "recurrent" else {"num_heads": 4, "max_length": 16}
    return MODELS[family].config_class(**(SMALL | transformer | fields))


def params(family, c, heads=HEADS, seed=0, std=0.2):
    """Return normal numbers for every parameter; norm scales stand around 1."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        noise = std * rng.normal(size=leaf.shape).astype(np.float32)
        return noise + (1 if path.endswith("norm/scale") else 0)

    return tree.map_paths(draw, abstract_params(family, c, heads))


def model(family, heads=HEADS, **fields):
    c = config(family, **fields)
    return c, build(family, c, heads), params(family, c, heads)


@functools.partial(jax.jit, static_argnums=0)
def apply(module, params, batch):
    """Return a module's outputs; equal modules are compiled once."""
    return module.apply({"params": params}, batch)


def packed(seed=0):
    """Return rows of two documents and padding; document 1 is A, document 2 is B."""
    rng = np.random.default_rng(seed)
    segments = np.array([[1] * 4 + [2] * 5 + [0] * 2, [1] * 6 + [2] * 4 + [0]], np.int32)
    starts = np.array([[0] * 4 + [4] * 5 + [9] * 2, [0] * 6 + [6] * 4 + [10]])
    memory = np.array([[1] * 3 + [2] * 4 + [0] * 2, [1] * 5 + [2] * 4], np.int32)
    return {
        "tokens": rng.integers(0, V, (B, L)).astype(np.int32),
        "segment_ids": segments,
        "positions": (np.arange(L)[None] - starts).astype(np.int32),
        "token_types": rng.integers(0, 2, (B, L)).astype(np.int32),
        "encoder_tokens": rng.integers(0, V, (B, M)).astype(np.int32),
        "encoder_segment_ids": memory,
    }


def change_document(batch, document, seed=1):
    """Return the batch with every token of one document replaced."""
    rng = np.random.default_rng(seed)
    changed = dict(batch)
    for prefix in ("", "encoder_"):
        tokens, here = batch[f"{prefix}tokens"], batch[f"{prefix}segment_ids"] == document
        other = (tokens + rng.integers(1, V, tokens.shape)) % V
        changed[f"{prefix}tokens"] = np.where(here, other, tokens).astype(np.int32)
    return changed


def logits_and_gradients(module, weights):
    """Return a compiled f(params, batch): outputs, and gradients of a sum over `weights`."""

    def loss(p, batch):
        out = module.apply({"params": p}, batch)
        return (out["lm"] * weights[..., None]).sum(), out

    return jax.jit(jax.value_and_grad(loss, has_aux=True))
