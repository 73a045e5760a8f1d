"""Pre-train a model further on your own text, before it is fine-tuned there.

Domain-adaptive pre-training (Gururangan et al., 2020). Architecture, tokenizer and weights come
from what `init` names: a run directory, or a Hugging Face model as hf:NAME_OR_DIR. The learning
rate suits models of 20 to 300 million parameters; a tiny one takes ten times as much.

    python -m flaxlm train --config=configs/adapt.py:masked_lm --workdir=runs/adapted \
        --config.init=hf:DIR --config.data.path='text/*.jsonl.zst'
"""

from ml_collections import ConfigDict


def get_config(arg: str = "causal_lm") -> ConfigDict:
    """Return the recipe; `arg` is the objective: causal_lm, masked_lm or span_corruption."""
    return ConfigDict(
        dict(
            seed=0,
            init="",
            tokenizer=dict(),
            data=dict(path="stdlib", field="text", valid_fraction=0.05),
            model=dict(),
            objective=dict(name=arg) | (dict(nsp=False) if arg == "masked_lm" else {}),
            optimizer=dict(
                name="adamw",
                learning_rate=1e-4,
                schedule="linear",
                warmup_steps=20,
                b2=0.98,
                weight_decay=0.01,
                clip_norm=1.0,
            ),
            train=dict(steps=200, batch_size=16, length=128, log_every=20),
            checkpoint=dict(every=100, keep=1),
            eval=dict(every=100),
            sharding=dict(data=-1),
        )
    )
