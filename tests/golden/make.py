"""Write the runs of this folder anew, each with what `test_golden.py` must find in it.

    cd tests/golden && python make.py

They stay as they are: the test says that what an earlier version wrote opens in every later one.
They were written at version 0.1.0 (af51547), and are made again only to add one.
"""

import json
import pathlib
import random
import shutil

from flaxlm.commands.evaluate import evaluate
from flaxlm.commands.inspect import inspect
from flaxlm.train import train
from flaxlm.training import config as run_config

WORDS = "the sea was calm and grey that day we rowed to a far green island".split()
SIZES = {"width": 8, "num_layers": 1, "num_heads": 2, "max_length": 16}
STEPS = 3


def text() -> str:
    """Return paragraphs of two sentences, always the same."""
    draw = random.Random(0)
    sentences = (" ".join(draw.choices(WORDS, k=6)).capitalize() + "." for _ in range(80))
    return "".join(f"{a} {b}\n\n" for a, b in zip(sentences, sentences, strict=True))


def labelled() -> str:
    """Return lines of texts labelled by whether they hold `sea`, always the same."""
    draw = random.Random(1)
    texts = (" ".join(draw.choices(WORDS[:4], k=3)) for _ in range(40))
    rows = ({"text": t, "label": "sea" if "sea" in t else "other"} for t in texts)
    return "".join(json.dumps(row) + "\n" for row in rows)


def recipe(name: str) -> dict:
    """Return the recipe of a run, by its folder's name."""
    transformer = {"vocab_size": 271, "vocab_multiple": 1} | SIZES
    sections = {
        "encoder": {
            "tokenizer": {"kind": "word", "vocab_size": 40, "sentinels": 0, "byte_fallback": False},
            "model": transformer | {"name": "encoder", "vocab_size": 40, "token_types": 2},
            "objective": {"name": "masked_lm", "nsp": True},
            "data": {"sentences": True},
        },
        "decoder": {
            "tokenizer": {"kind": "bpe", "vocab_size": 48, "sentinels": 0, "byte_fallback": False},
            "model": transformer | {"name": "decoder", "vocab_size": 48, "tied": False},
        },
        "encoder_decoder": {
            "tokenizer": {"kind": "byte", "sentinels": 10},
            "model": transformer | {"name": "encoder_decoder", "positions": "relative"},
            "objective": {"name": "span_corruption"},
            "optimizer": {"name": "lion"},  # one moment a parameter: 200 KB hold it
        },
        "recurrent": {
            "tokenizer": {"kind": "char", "sentinels": 0, "byte_fallback": False},
            "model": {"name": "recurrent", "vocab_size": 40, "width": 8, "num_layers": 2},
            "train": {"ema_decay": 0.5},
        },
        "lora": {
            "init": "decoder",
            "task": {"name": "classification"},
            "objective": {"name": "classification", "labels": ("other", "sea")},
            "lora": {"rank": 2},
            "data": {"path": "labelled.jsonl", "split": "hash", "valid_fraction": 0.3},
        },
    }[name]
    base = {
        "data": {"path": "text.txt", "document": "paragraph", "valid_fraction": 0.2},
        "train": {"steps": STEPS, "batch_size": 4, "length": 16, "log_every": 1},
        "optimizer": {"learning_rate": 1e-2, "schedule": "constant"},
        "eval": {"split": ""},
    }
    if name == "lora":
        base["data"] = {}
    merged = {
        key: base.get(key, {}) | sections.get(key, {}) for key in {*base, *sections} - {"init"}
    }
    return merged | {"init": sections.get("init", "")}


def main() -> None:
    """Write the data, the runs and their digests in the working directory."""
    pathlib.Path("text.txt").write_text(text())
    pathlib.Path("labelled.jsonl").write_text(labelled())
    expected = {}
    for name in ("encoder", "decoder", "encoder_decoder", "recurrent", "lora"):
        workdir = pathlib.Path(name).absolute()
        shutil.rmtree(workdir, ignore_errors=True)
        config = run_config.from_dict(recipe(name))
        train(config, workdir)
        expected[name] = inspect(config, workdir, "latest")
        expected[name] |= evaluate(config, workdir, "valid", "")
        for folder in ("cache", "tensorboard", "evaluations"):
            shutil.rmtree(workdir / folder, ignore_errors=True)
        (workdir / "lock").unlink(missing_ok=True)
        for path in workdir.rglob("commit_success.txt"):  # names the machine's folders
            path.write_text("Checkpoint commit was successful.\n")
    pathlib.Path("expected.json").write_text(json.dumps(expected, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
