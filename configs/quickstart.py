"""The quickstart: each family, small, on the Python standard library's own text.

`:family=gpt|bert|t5,stage=pretrain|finetune`. In fine-tuning gpt and bert predict which package a
docstring comes from; t5 writes a function's docstring summary from its code. Files are split by
hash, 70 / 5 / 25 %, the same way in both stages, so that no test file is pre-trained on.

    make quickstart FAMILY=gpt

Seed 0, 2 cores, 2026-11-23, pre-trained against from scratch: gpt 59.5 and 49.9 % test accuracy,
bert 60.8 and 55.3 %; t5 10.3 and 5.5 % ROUGE-L, loss 4.72 and 5.07 (experiments/quickstart).
"""

from ml_collections import ConfigDict

# Packages of the standard library with many docstrings (Python 3.11 to 3.13).
LABELS = (
    "asyncio", "concurrent", "ctypes", "email", "encodings", "http", "importlib", "json",
    "logging", "multiprocessing", "tkinter", "unittest", "urllib", "wsgiref", "xml",
)  # fmt: skip
SIZE = dict(width=128, num_layers=4, num_heads=4, max_length=256, vocab_multiple=128)
MODELS = {
    "gpt": dict(name="decoder", **SIZE),
    # Rotary: with learned absolute positions a masked LM this small takes most of its steps to
    # learn which tokens are neighbours. Mean pooling: without next-sentence prediction nothing has
    # taught the first token to represent the text. Two layers learn as much per step as four.
    "bert": dict(
        name="encoder",
        positions="rotary",
        pooling="mean",
        **SIZE | dict(num_layers=2),
    ),
    "t5": dict(
        name="encoder_decoder",
        positions="relative",
        norm="rmsnorm",
        **SIZE | dict(num_layers=3),
    ),
}
STEPS = {"gpt": 800, "bert": 2400, "t5": 1000}
OBJECTIVES = {
    "gpt": dict(name="causal_lm"),
    # 30 %: in so few steps, more targets are worth more than more context (Wettig et al., 2023).
    "bert": dict(name="masked_lm", nsp=False, rate=0.3),
    "t5": dict(name="span_corruption"),
}


def get_config(arg: str = "family=gpt,stage=pretrain") -> ConfigDict:
    """Return the recipe of one family and stage."""
    options = {"family": "gpt", "stage": "pretrain"}
    options |= dict(part.split("=", 1) for part in arg.split(",") if part)
    family, stage = options["family"], options["stage"]
    if family not in MODELS or stage not in ("pretrain", "finetune"):
        raise ValueError(f"{arg!r}: family is gpt, bert or t5, stage pretrain or finetune")
    config = dict(
        seed=0,
        init="",
        tokenizer=dict(kind="unigram", vocab_size=4096, sentinels=64, train_chars=4_000_000),
        data=dict(
            path="stdlib",
            valid_fraction=0.05,
            test_fraction=0.25,
        ),
        model=MODELS[family],
        objective=OBJECTIVES[family],
        optimizer=dict(
            name="adamw",
            learning_rate=2e-3,
            schedule="wsd",
            warmup_steps=50,
            b2=0.98,
            weight_decay=0.05,
            clip_norm=1.0,
        ),
        train=dict(steps=STEPS[family], batch_size=32, length=128, log_every=20),
        checkpoint=dict(every=200, keep=2),
        eval=dict(every=200, batch_size=64),
        sharding=dict(data=-1),
    )
    if stage == "finetune":
        task = "stdlib_summary" if family == "t5" else "stdlib_package"
        objective = (
            dict(name="text_to_text", target_length=40)
            if family == "t5"
            else dict(name="classification", labels=LABELS)
        )
        config |= dict(
            model=dict(),
            tokenizer=dict(),
            # Docstrings of one file are alike: a few of each, lest a large file decide the score.
            task=dict(name=task, max_per_file=100 if family == "t5" else 20),
            objective=objective,
            optimizer=dict(
                name="adamw",
                learning_rate=2e-3 if family == "t5" else 1e-3,
                schedule="linear",
                warmup_steps=20,
                b2=0.98,
                weight_decay=0.05,
                clip_norm=1.0,
            ),
            train=dict(
                steps=300 if family == "t5" else 160,
                batch_size=32,
                length=128 if family == "t5" else 64,
                log_every=20,
            ),
            checkpoint=dict(every=0, keep=1),
            eval=dict(
                every=40,
                batch_size=64,
                metric="loss" if family == "t5" else "accuracy",
                mode="min" if family == "t5" else "max",
            ),
        )
    return ConfigDict(config)
