"""How near to each other two float32 computations of one thing must come, on any processor.

Compilers and processors order and fuse sums in ways of their own. A sum of n terms of size m that
is taken in another order moves by some eps · √n · m, where m is the size of what is added and not
of what comes out: where terms cancel, a bound by the outcome is nearer than rounding.
"""

import numpy as np

from flaxlm import tree

EPS = float(np.finfo(np.float32).eps)


def norm(x) -> float:
    """Return the Euclidean norm, summed in float64."""
    return float(np.linalg.norm(np.asarray(x, np.float64)))


def assert_same_gradients(found, expected):
    """Compare (loss, gradients) of two programs: each parameter's gradient by its norm.

    What is added up to a gradient is of the size of the largest gradients, also for a key's bias,
    whose true gradient is 0. Some 256 positions, each rounded in a handful of products, may move
    it by eps · √(256 · 4) of the whole gradient's norm. Beyond that it agrees to 1e-5 of its own.
    """
    (loss, gradients), (loss0, gradients0) = found, expected
    assert abs(loss - loss0) <= 1e-5 * abs(loss0)
    gradients, gradients0 = tree.flatten(gradients), tree.flatten(gradients0)
    assert gradients.keys() == gradients0.keys()
    whole = np.sqrt(sum(norm(g) ** 2 for g in gradients0.values()))
    for path, g in gradients0.items():
        bound = 1e-5 * norm(g) + 32 * EPS * whole
        assert norm(np.asarray(gradients[path], np.float64) - g) <= bound, path
