"""BERT, GPT and T5 under one JAX/Flax trainer.

The names below are imported when they are first used, so that `import flaxlm` costs nothing. The
verbs are functions of modules: `flaxlm.train.train`, `flaxlm.inference.generate.generate`.
"""

import importlib

__version__ = "0.1.0"

_PUBLIC = {
    "RunConfig": "training.config.RunConfig",
    "ShardingConfig": "sharding.ShardingConfig",
    "TrainedModel": "trained.TrainedModel",
    "from_dict": "training.config.from_dict",
    "from_pretrained": "training.opened.load",
    "load": "training.opened.load",
    "make_mesh": "sharding.make_mesh",
    "make_train_step": "training.step.make_train_step",
    "save_pretrained": "interop.pretrained.save_pretrained",
}
__all__ = list(_PUBLIC)


def __getattr__(name: str):
    if name not in _PUBLIC:
        raise AttributeError(f"module 'flaxlm' has no attribute {name!r}")
    module, _, attribute = _PUBLIC[name].rpartition(".")
    return getattr(importlib.import_module(f"flaxlm.{module}"), attribute)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
