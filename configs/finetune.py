"""Fine-tune a run, or a Hugging Face model, on a supervised task: your own file, or one of GLUE.

Architecture and tokenizer come from `init`; only the task's head starts fresh. With
--config.init_weights=False the same model starts from random numbers, as a control. A task brings
its objective, labels and metric along: --config.task.name=classification (the default: a column
`text`, perhaps a second one, and a label), regression, multi_label, similarity, cola, sst2, mrpc, …

    python -m flaxlm train --config=configs/finetune.py --workdir=runs/reviews \
        --config.init=hf:google-bert/bert-base-uncased \
        --config.data.path=train.tsv --config.data.valid_path=dev.tsv \
        --config.task.text_column=sentence --config.objective.labels="('0','1')"

If labels are missing, the error lists them, ready to be copied. The setting is that of Devlin et
al. (2019), A.3, for models of BERT's size: 3 epochs in batches of 32, one of the learning rates
2e-5, 3e-5 and 5e-5, warm-up over a tenth of the steps and linear decay; dropout is the model's.
Small models need higher rates (1e-4 to 1e-3), and small files more epochs (10). Batches are cut to
16, 32 or 64 tokens where that is enough (train.buckets, below train.length). What counts is the
best of the evaluations on `valid_path`, every 500 steps and at the end; after 5 without
improvement the run ends.

The whole of GLUE: python -m flaxlm glue --init=… --data=DIR --workdir=DIR.
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
            task=dict(name="classification"),
            model=dict(),
            objective=dict(),
            optimizer=dict(
                name="adamw",
                learning_rate=5e-5,
                schedule="linear",
                warmup_fraction=0.1,
                weight_decay=0.01,
                clip_norm=1.0,
            ),
            train=dict(epochs=3.0, batch_size=32, length=128, buckets=(16, 32, 64)),
            checkpoint=dict(every=500, keep=1, keep_best=1),
            eval=dict(every=500, patience=5),
            sharding=dict(data=-1),
        )
    )
