"""A character-level GPT on tiny Shakespeare: nanoGPT's recipes.

Default: the CPU recipe, 4 layers, 4 heads, 128 wide, context 64, batch 12, 2,000 iterations
(1.5 M characters read). `:size=baby`: the GPU recipe, 6 layers, 384 wide, context 256, batch 64,
5,000 iterations. The text's first 90 % train, all of the rest is scored in windows of `length`.

    python -m flaxlm train --config=configs/shakespeare_char.py --workdir=runs/shakespeare \
        --config.data.path=input.txt
"""

from ml_collections import ConfigDict


def get_config(arg: str = "size=small") -> ConfigDict:
    """Return the recipe; `size` is small or baby."""
    size = arg.removeprefix("size=")
    if size not in ("small", "baby"):
        raise ValueError(f"size={size!r}: choose small or baby")
    baby = size == "baby"
    return ConfigDict(
        dict(
            seed=0,
            init="",
            tokenizer=dict(kind="char", vocab_size=70, byte_fallback=False, sentinels=0),
            data=dict(path="input.txt", split="tail", valid_fraction=0.1, append_eos=False),
            model=dict(
                name="decoder",
                width=384 if baby else 128,
                num_layers=6 if baby else 4,
                num_heads=6 if baby else 4,
                max_length=256 if baby else 64,
                vocab_multiple=1,
                activation="gelu",
                norm_bias=False,
                attention_bias=False,
                attention_out_bias=False,
                mlp_bias=False,
                scale_residual_init=True,
                embed_dropout=0.2 if baby else 0.0,
                attention_dropout=0.2 if baby else 0.0,
                residual_dropout=0.2 if baby else 0.0,
            ),
            objective=dict(name="causal_lm"),
            optimizer=dict(
                name="adamw",
                learning_rate=1e-3,
                final_learning_rate=1e-4,
                schedule="cosine",
                warmup_steps=100,
                b1=0.9,
                b2=0.99,
                weight_decay=0.1,
                clip_norm=1.0,
            ),
            train=dict(
                steps=5000 if baby else 2000,
                batch_size=64 if baby else 12,
                length=256 if baby else 64,
                log_every=50,
            ),
            checkpoint=dict(every=500, keep=2),
            eval=dict(every=250 if baby else 500, batch_size=128),
            sharding=dict(data=-1),
        )
    )
