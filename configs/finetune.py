"""Fine-tune any run on your own classification file: JSONL, CSV or TSV with named columns.

Architecture and tokenizer come from the run that `init` names; only the classifier starts fresh.
With --config.init_weights=False the same model starts from random numbers: the control. With
--config.lora.rank=8 only low-rank factors and the classifier are trained, which takes a higher
learning rate; --config.train.buckets=(16,32,64) cuts batches of short texts.

    python -m flaxlm train --config=configs/finetune.py --workdir=runs/sst2 \
        --config.init=runs/bert --config.data.path=train.tsv --config.data.valid_path=dev.tsv \
        --config.task.text_column=sentence --config.objective.labels="('0','1')"
"""

from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    """Return the recipe; `arg` is unused."""
    return ConfigDict(
        dict(
            seed=0,
            init="",
            tokenizer=dict(),
            data=dict(path="train.jsonl", split="file", valid_path="dev.jsonl"),
            task=dict(name="classification", text_column="text", label_column="label"),
            model=dict(),
            objective=dict(name="classification", labels=("0", "1")),
            optimizer=dict(
                name="adamw",
                learning_rate=5e-4,
                schedule="linear",
                warmup_steps=50,
                weight_decay=0.01,
                clip_norm=1.0,
            ),
            train=dict(epochs=3.0, steps=0, batch_size=32, length=128),
            checkpoint=dict(every=0, keep=1, keep_best=1),
            eval=dict(every=200, metric="accuracy", mode="max", patience=5),
            sharding=dict(data=-1),
        )
    )
