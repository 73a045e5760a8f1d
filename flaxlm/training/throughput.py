"""How many operations a training step takes, and how many the devices could do."""

import math

import jax

from flaxlm import tree
from flaxlm.training.config import RunConfig

# Dense bfloat16 peak of one device, FLOP/s, from the makers' data sheets.
PEAK_FLOPS = {
    "A100": 312e12,
    "H100": 989e12,
    "H200": 989e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,
    "TPU v6": 918e12,
}


def peak_flops() -> float:
    """Return the bfloat16 peak of all devices together, or 0 where it is not known (CPUs)."""
    kind = jax.devices()[0].device_kind
    return next((v for k, v in PEAK_FLOPS.items() if k in kind), 0.0) * jax.device_count()


def flops_per_token(config: RunConfig, params) -> float:
    """Return the training FLOPs a token: 6 N + 12 · layers · heads · head size · length.

    Kaplan et al. (2020), section 2.1, with the attention term of Chowdhery et al. (2022),
    appendix B. N leaves out what is only looked up: positions, types, and an untied token table.
    """
    model = config.model
    looked_up = r"embed/(position|token_type)" + (
        "" if getattr(model, "tied", True) else "|embed/token"
    )
    counted = sum(
        math.prod(leaf.shape)
        for path, leaf in tree.flatten(params).items()
        if not tree.first_match([(looked_up, True)], path)
    )
    attention = 0
    if hasattr(model, "num_heads"):
        attention = model.num_layers * model.num_heads * model.head_dim * config.train.length
    return 6.0 * counted + 12.0 * attention
