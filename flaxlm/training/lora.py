"""LoRA: low-rank factors beside frozen kernels (Hu et al., 2021), put in, chosen and merged.

A kernel W [*I, *O] gets `lora_a` [*I, R], `lora_b` [R, *O] and `lora_scale`, alpha / R, a constant,
so that parameters and module alone say what a model computes: x · (W + scale · a · b), see
`models.layers.projected`. Stacked layers have stacked factors.
"""

import dataclasses
import math
import zlib

import jax
import jax.numpy as jnp

from flaxlm import tree
from flaxlm.errors import ConfigError

FACTORS = ("lora_a", "lora_b")  # what is trained


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Low-rank adaptation; what is neither a factor nor named by `train` stays as it is.

    Attributes:
      targets: regexes of the paths of the kernels that get factors.
    """

    rank: int = 0  # R of the factors; 0: off, everything is trained
    alpha: float = 16.0  # the product of the factors counts alpha / rank
    targets: tuple[str, ...] = (r"attention/(query|value)/kernel$",)
    train: tuple[str, ...] = (r"^heads/",)  # regexes of other parameters that are trained

    def __post_init__(self):
        if self.rank < 0 or self.alpha <= 0:
            raise ConfigError(
                f"lora.rank={self.rank} must be 0 (off) or more, lora.alpha={self.alpha} positive"
            )
        if self.rank and not self.targets:
            raise ConfigError("lora.targets is empty: name the kernels that get factors")
        tree.check_patterns("lora.targets", self.targets)
        tree.check_patterns("lora.train", self.train)


def is_adapter(path: str) -> bool:
    """Return whether a parameter is a factor, or the scale of two."""
    return path.rpartition("/")[2] in (*FACTORS, "lora_scale")


def kernel_of(path: str) -> str:
    """Return the path of the kernel that a factor or scale lies beside."""
    return f"{path.rpartition('/')[0]}/kernel"


def add(params: dict, config: LoraConfig, axes, seed) -> dict:
    """Return `params` with fresh factors beside the target kernels.

    `lora_b` is zero, so nothing is changed by them. `lora_a` is normal with a standard deviation
    of (inputs)^−½ and a function of (seed, path), whatever other parameters there are.

    `axes` are the model's rows of logical axes, which say what of a kernel its inputs are.
    ConfigError where a target is no kernel; the nearest are named.
    """
    if not config.rank:
        return params
    flat = tree.flatten(params)
    kernels = [path for path in flat if path.endswith("/kernel")]
    for path in sorted(tree.select("lora.targets", config.targets, kernels)):
        kernel, place = flat[path], path.removesuffix("kernel")
        inputs = len(tree.first_match(axes, f"{place}lora_a")) - 1
        stack = kernel.ndim - len(tree.first_match(axes, path))
        layers, shape = kernel.shape[:stack], kernel.shape[stack:]
        read, written = shape[:inputs], shape[inputs:]
        key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(path.encode()))
        noise = jax.random.normal(key, (*layers, *read, config.rank), kernel.dtype)
        flat[f"{place}lora_a"] = noise * math.prod(read) ** -0.5
        flat[f"{place}lora_b"] = jnp.zeros((*layers, config.rank, *written), kernel.dtype)
        flat[f"{place}lora_scale"] = jnp.full(layers, config.alpha / config.rank, jnp.float32)
    return tree.unflatten(flat)


def trainable(config: LoraConfig, paths) -> set[str]:
    """Return the paths that are trained: all of them, or the factors and what `train` names.

    ConfigError where a pattern matches nothing, but for the default: a tied head has no parameters.
    """
    if not config.rank:
        return set(paths)
    base = [path for path in paths if not is_adapter(path)]
    asked = [
        pattern
        for pattern in config.train
        if pattern not in LoraConfig.train or any(path.startswith("heads/") for path in base)
    ]
    factors = {path for path in paths if path.rpartition("/")[2] in FACTORS}
    return factors | tree.select("lora.train", asked, base)


def merge(params: dict) -> dict:
    """Return `params` with each product of factors added to its kernel, and without factors."""
    flat = tree.flatten(params)
    merged = {path: leaf for path, leaf in flat.items() if not is_adapter(path)}
    for path, a in flat.items():
        if path.endswith("/lora_a"):
            place = path.removesuffix("lora_a")
            kernel, b = flat[f"{place}kernel"], flat[f"{place}lora_b"]
            merged[f"{place}kernel"] = _sum(kernel, a, b, flat[f"{place}lora_scale"])
    return tree.unflatten(merged)


def _sum(kernel, a, b, scale):
    # [stack, inputs, R] · [stack, R, outputs]; the scale's dimensions are those of the stack.
    layers, rank = scale.shape, a.shape[-1]
    left = a.reshape(*layers, -1, rank).astype(jnp.float32)
    right = b.reshape(*layers, rank, -1).astype(jnp.float32)
    product = jnp.matmul(left * scale[..., None, None], right, precision="highest")
    return (kernel + product.reshape(kernel.shape)).astype(kernel.dtype)
