"""GPT-2 small (124 M parameters) on your text: Radford et al. (2019), trained as GPT-3 was.

Batch 480 × 1,024 = 491,520 tokens per step; 600,000 steps are the 300 B tokens of Brown et al.
(2020). 6 N + attention ≈ 0.86 GFLOP per token: 422 TFLOP per step. Weights, gradients and AdamW
moments are 2.0 GB in float32; set train.microbatches so that the logits, B × 1,024 × 50,257
float32, fit beside them.

    python -m flaxlm train --config=configs/gpt_small.py --workdir=runs/gpt_small \
        --config.data.path='text/*.jsonl.zst'
"""

from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    """Return the recipe; `arg` is a GPT-2 preset: gpt2 (default), gpt2_medium, …, gpt2_xl."""
    return ConfigDict(
        dict(
            seed=0,
            init="",
            tokenizer=dict(kind="bpe", vocab_size=50257, sentinels=0),
            data=dict(path="stdlib", field="text"),
            model=dict(preset=arg or "gpt2", dtype="bfloat16", remat="none"),
            objective=dict(name="causal_lm"),
            optimizer=dict(
                name="adamw",
                learning_rate=6e-4,
                final_learning_rate=6e-5,
                schedule="cosine",
                warmup_steps=2000,
                b2=0.95,
                weight_decay=0.1,
                clip_norm=1.0,
            ),
            train=dict(steps=600_000, batch_size=480, length=1024, microbatches=1),
            checkpoint=dict(every=1000, keep=2),
            eval=dict(every=2000),
            sharding=dict(data=-1, fsdp=1, tensor=1),
        )
    )
