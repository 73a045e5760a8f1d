"""T5 (Raffel et al., 2020): span corruption, 15 % of the tokens in spans of 3 on average.

The paper's setting: batch 128, length 512, 2^19 steps (34 B tokens), Adafactor, learning rate
1 / √step after the first 10,000 steps, over which it rises linearly to 0.01 here, where the paper
holds 0.01 from the start. Dropout 0.1 as in the first T5; v1.1 pre-trains without dropout.

    python -m flaxlm train --config=configs/t5_small.py --workdir=runs/t5_small \
        --config.data.path='text/*.jsonl.zst'
"""

from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    """Return the recipe; `arg` is a T5 preset (default t5_small)."""
    return ConfigDict(
        dict(
            seed=0,
            init="",
            tokenizer=dict(kind="unigram", vocab_size=32100, sentinels=100),
            data=dict(path="stdlib", field="text"),
            model=dict(preset=arg or "t5_small", dtype="bfloat16"),
            objective=dict(name="span_corruption"),
            optimizer=dict(
                name="adafactor",
                learning_rate=1e-2,
                schedule="inverse_sqrt",
                warmup_steps=10_000,
                weight_decay=0.0,
                clip_norm=0.0,
            ),
            train=dict(steps=524_288, batch_size=128, length=512),
            checkpoint=dict(every=1000, keep=2),
            eval=dict(every=5000),
            sharding=dict(data=-1, fsdp=1, tensor=1),
        )
    )
