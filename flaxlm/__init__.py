"""BERT, GPT and T5 under one JAX/Flax trainer.

The names below are imported when they are first used, so that `import flaxlm` costs nothing. The
verbs are functions of modules: `flaxlm.train.train`, `flaxlm.inference.generate.generate`.
"""

import importlib

__version__ = "0.1.0"

_PUBLIC = {
    "GenerateConfig": "flaxlm.inference.generate",
    "RunConfig": "flaxlm.training.config",
    "ShardingConfig": "flaxlm.sharding",
    "from_dict": "flaxlm.training.config",
    "from_pretrained": "flaxlm.interop.pretrained",
    "load_tokenizer": "flaxlm.data.tokenizer",
    "make_mesh": "flaxlm.sharding",
    "make_train_step": "flaxlm.training.step",
    "save_pretrained": "flaxlm.interop.pretrained",
}
__all__ = list(_PUBLIC)


def __getattr__(name: str):
    if name not in _PUBLIC:
        raise AttributeError(f"module 'flaxlm' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)
