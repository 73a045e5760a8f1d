"""Text to text: summaries, translations, written answers, instructions, conversations.

`:t5` (default) and `:gpt` are small models from scratch, with a tokenizer trained on the training
examples: minutes on a CPU. `:pretrained` takes model and tokenizer from what `init` names, a run
directory or hf:NAME_OR_DIR. The task says which files are read, and brings its lengths; several
short examples share a training row.

    python -m flaxlm train --config=configs/text_to_text.py --workdir=runs/multi30k \
        --config.task.name=multi30k --config.data.path=DIR
    python -m flaxlm train --config=configs/text_to_text.py:pretrained --workdir=runs/dialogsum \
        --config.init=hf:t5-small --config.task.name=dialogsum --config.data.path=DIR
"""

from ml_collections import ConfigDict

SIZE = dict(
    width=128,
    num_layers=3,
    num_heads=4,
    vocab_multiple=128,
    embed_dropout=0.1,
    residual_dropout=0.1,
)
MODELS = {
    "t5": dict(name="encoder_decoder", positions="relative", norm="rmsnorm", **SIZE),
    "gpt": dict(name="decoder", positions="rotary", **SIZE),
    "pretrained": {},
}


def get_config(arg: str = "t5") -> ConfigDict:
    """Return the recipe; `arg` is t5, gpt or pretrained."""
    if arg not in MODELS:
        raise ValueError(f"{arg!r}: choose t5, gpt or pretrained")
    scratch = arg != "pretrained"
    return ConfigDict(
        dict(
            seed=0,
            init="",
            tokenizer=dict(kind="unigram", vocab_size=4096, sentinels=0) if scratch else dict(),
            data=dict(path="train.jsonl", split="hash", valid_fraction=0.05),
            task=dict(name="text_to_text"),
            model=MODELS[arg],
            objective=dict(name="text_to_text", target_length=64, pack=True, label_smoothing=0.1),
            optimizer=dict(
                name="adamw",
                learning_rate=2e-3 if scratch else 3e-4,
                schedule="linear",
                warmup_steps=100,
                b2=0.98,
                weight_decay=0.01,
                clip_norm=1.0,
            ),
            train=dict(
                epochs=8.0 if scratch else 3.0, batch_size=64 if scratch else 16, length=128
            ),
            checkpoint=dict(every=200, keep=1, keep_best=1),
            eval=dict(every=200, batch_size=64),
            sharding=dict(data=-1),
        )
    )
