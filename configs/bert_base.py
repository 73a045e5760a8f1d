"""BERT (Devlin et al., 2019): masked LM and next-sentence prediction on sentence pairs.

The paper's setting: batch 256, one million steps, length 128 for the first 90 % of them and 512
for the rest (start the second part with --config.init=FIRST and train.length=512), AdamW 1e-4,
10,000 steps of warm-up and linear decay, dropout 0.1. 15 % of the tokens are predicted.

    python -m flaxlm train --config=configs/bert_base.py --workdir=runs/bert_base \
        --config.data.path='text/*.jsonl.zst'
"""

from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    """Return the recipe; `arg` is a BERT preset: bert_tiny … bert_large (default bert_base)."""
    return ConfigDict(
        dict(
            seed=0,
            init="",
            tokenizer=dict(kind="unigram", vocab_size=30522, sentinels=0),
            data=dict(path="stdlib", field="text", sentences=True),
            model=dict(preset=arg or "bert_base", dtype="bfloat16"),
            objective=dict(name="masked_lm", nsp=True),
            optimizer=dict(
                name="adamw",
                learning_rate=1e-4,
                schedule="linear",
                warmup_steps=10_000,
                epsilon=1e-6,
                weight_decay=0.01,
                clip_norm=1.0,
            ),
            train=dict(steps=900_000, batch_size=256, length=128),
            checkpoint=dict(every=1000, keep=2),
            eval=dict(every=5000),
            sharding=dict(data=-1, fsdp=1, tensor=1),
        )
    )
