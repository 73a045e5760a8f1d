"""How far each parameter is from the top of its model, for layer-wise learning-rate decay.

Heads and a stack's final norm are at 0, the last of N layers at 1, the first at N, the embeddings
at N + 1. The two stacks of an encoder-decoder count side by side, each from its own top, because
every layer of the decoder reads the top of the encoder; the embeddings that both read are below
the deeper one. Layers that share their parameters (ALBERT) count as one. What all layers of a
stack read (the table of relative positions) is with the first of them.
"""

import re

import numpy as np

from flaxlm import tree

LAYER = r"^(\w+)/(layers|first|relative)/"
RULES = ((r"^heads/|/final_norm/", 0), (LAYER, 1), (r"^embed/|^recurrent/token$", 2))


def distances(config, params) -> dict[str, np.ndarray]:
    """Return {path: distance from the top}, a number or, for stacked layers, int64 [N].

    Args:
      config: of the model.
      params: its (abstract) parameters, all of them; ConfigError for one that has no place.
    """
    flat, shared = tree.flatten(params), getattr(config, "share_layers", False)
    kinds = {path: tree.required_match(RULES, path) for path in flat}
    stacked: dict[str, int] = {}  # layers under `layers`, by the name of the stack
    apart: dict[str, int] = {}  # a first layer of another structure
    for path, leaf in flat.items():
        stack, part = re.match(LAYER, path).groups() if kinds[path] == 1 else ("", "")
        if part == "layers":
            stacked[stack] = 1 if shared else leaf.shape[0]
        elif part == "first":
            apart[stack] = 1
    deepest = max(stacked.get(s, 0) + apart.get(s, 0) for s in {*stacked, *apart})

    def place(path: str) -> np.ndarray:
        if kinds[path] != 1:
            return np.array(0 if kinds[path] == 0 else deepest + 1)
        stack, part = re.match(LAYER, path).groups()
        if part == "layers" and not shared:
            return np.arange(stacked[stack], 0, -1)
        return np.array(stacked.get(stack, 0) + (0 if part == "layers" else apart.get(stack, 0)))

    return {path: place(path) for path in flat}
