"""A recurrent language model under the same causal-LM objective: two LSTM layers.

The proof that an architecture is one file and one row: nothing in data, objectives, loop or
generation knows that this is not a Transformer. `:cell=gru` uses gated recurrent units.

    python -m flaxlm train --config=configs/lstm.py --workdir=runs/lstm --config.data.path=text.txt
"""

from ml_collections import ConfigDict


def get_config(arg: str = "cell=lstm") -> ConfigDict:
    """Return the recipe; `cell` is lstm or gru."""
    return ConfigDict(
        dict(
            seed=0,
            init="",
            tokenizer=dict(kind="unigram", vocab_size=4096, sentinels=0),
            data=dict(path="stdlib"),
            model=dict(name="recurrent", cell=arg.removeprefix("cell="), width=256, num_layers=2),
            objective=dict(name="causal_lm"),
            optimizer=dict(
                name="adamw", learning_rate=2e-3, schedule="cosine", warmup_steps=100, clip_norm=1.0
            ),
            train=dict(steps=1000, batch_size=32, length=64),
            checkpoint=dict(every=500),
            eval=dict(every=500),
            sharding=dict(data=-1),
        )
    )
