"""Fine-tune on the published sets of a folder, or score them without training; a line each.

    python experiments/2026-11-24_tasks/tasks.py --data=DIR --model=hf:DIR --causal=hf:DIR \
        --masked=RUN --workdir=runs/tasks --csv=experiments/2026-11-24_tasks/results.csv \
        [--tasks=sst2,mrpc]

`model` is what is fine-tuned (all-MiniLM-L6-v2), `causal` and `masked` are language models. A task
whose run has ended is not run again: the table is made from what its directory holds.
"""

import argparse
import csv
import json
import pathlib
import re
import shlex
import subprocess
import sys
import time


def options(learning_rate: float, **rest) -> list[str]:
    """Return the options of a fine-tuning run; keys are written `section__key`."""
    given = {"optimizer__learning_rate": learning_rate, "eval__every": 0} | rest
    return [f"--config.{key.replace('__', '.')}={value}" for key, value in given.items()]


def files(folder: str, train: str, valid: str) -> dict[str, str]:
    """Return the options of two files of a folder of the data."""
    return {"data__path": f"DATA/{folder}/{train}", "data__valid_path": f"DATA/{folder}/{valid}"}


def held_out(folder: str, file: str, fraction: float) -> dict:
    """Return the options of one file, a share of whose texts is held out."""
    return {"data__path": f"DATA/{folder}/{file}", "data__split": "hash",
            "data__valid_path": "", "data__valid_fraction": fraction}  # fmt: skip


def steps(count: int) -> dict:
    """Return the options of a run of so many steps."""
    return {"train__steps": count, "train__epochs": 0.0}


TSV = ("train.tsv", "dev.tsv")
CHINESE = {"task__name": "classification", "objective__labels": "('0','1')"}
WINDOWS = {"train__length": 256, "train__buckets": "(128,192)", "train__batch_size": 16}

# name: (metric, options of configs/finetune.py)
FINE_TUNED = {
    "sst2": ("accuracy", options(1e-4, **files("glue_sst2", *TSV), **steps(600))),
    "cola": ("matthews", options(1e-4, **files("glue_cola", *TSV), train__epochs=2.0)),
    "mrpc": ("f1", options(1e-4, **files("glue_mrpc", *TSV), train__epochs=2.0)),
    "rte": ("accuracy", options(1e-4, **files("glue_rte", *TSV), train__epochs=2.0)),
    "stsb": (
        "spearman",
        options(1e-4, **files("glue_stsb", "train.jsonl", "dev.jsonl"), train__epochs=2.0),
    ),
    "similarity": (
        "spearman",
        options(5e-5, **files("glue_stsb", "train.jsonl", "dev.jsonl"), train__epochs=2.0),
    ),
    "qnli": (
        "accuracy", options(1e-4, **held_out("glue_qnli", "dev.tsv", 0.2), train__epochs=1.0),
    ),
    "wnli": ("accuracy", options(1e-4, **files("glue_wnli", *TSV), train__epochs=2.0)),
    "wnut17": (
        "f1_micro",
        options(
            3e-4, **files("wnut17", "train.conll", "dev.conll"), train__epochs=5.0,
            train__length=64, train__buckets="(16,24,40)",
        ),
    ),
    "ud_pos": (
        "accuracy",
        options(3e-4, **files("ud_english_ewt", "train.conllu.gz", "dev.conllu.gz"),
                **steps(300)),
    ),
    "squad": (
        "f1",
        options(1e-4, **files("squad", "train-v1.1-subset.json.gz", "dev-v1.1.json.gz"),
                train__epochs=1.0, **WINDOWS),
    ),
    "squad2": (
        "f1", options(1e-4, **held_out("squad", "dev-v2.0.json.gz", 0.05), **steps(100), **WINDOWS),
    ),
    "cmrc2018": (
        "f1",
        options(
            3e-4, **held_out("cmrc2018", "trial.json.gz", 0.2), **steps(60),
            task__skip_unusable=True, task__max_answer_tokens=64, **WINDOWS,
        ),
    ),
    "chnsenticorp": (
        "accuracy",
        options(3e-4, **files("chnsenticorp", "train.jsonl", "dev.jsonl"), **CHINESE, **steps(100)),
    ),
}  # fmt: skip

# name: (metric, options), from scratch: an encoder-decoder, and an encoder with a tokenizer of the
# set's own, whose language the pre-trained one does not know
SCRATCH = {
    "multi30k": (
        "bleu",
        ["--config=configs/text_to_text.py", "--config.task.name=multi30k",
         "--config.data.path=DATA/multi30k", "--config.train.epochs=3.0"],
    ),
    "dialogsum": (
        "rouge_l",
        ["--config=configs/text_to_text.py", "--config.task.name=dialogsum",
         "--config.data.path=DATA/dialogsum/dev.jsonl",
         "--config.data.valid_path=DATA/dialogsum/test.jsonl", "--config.data.test_path=",
         "--config.train.batch_size=16"],
    ),
    "chnsenticorp-scratch": (
        "accuracy",
        ["--config=configs/bert_base.py:bert_tiny", "--config.tokenizer.vocab_size=8000",
         "--config.model.dtype=float32", "--config.data.split=file",
         *options(5e-4, **files("chnsenticorp", "train.jsonl", "dev.jsonl"), **CHINESE,
                  optimizer__warmup_steps=50, train__steps=600, train__batch_size=32,
                  train__length=128, train__buckets="(64,)")],
    ),
}  # fmt: skip

# set: (metrics, file), scored by language models as they are
ZERO_SHOT = {
    "lambada": (("acc", "perplexity"), "lambada/lambada_openai.jsonl"),
    "hellaswag": (("acc", "acc_norm"), "hellaswag/val.jsonl.zst"),
    "blimp": (("acc",), "blimp/blimp.jsonl.zst"),
    "crows_pairs": (("score",), "crows_pairs/crows_pairs_anonymized.csv"),
    "stereoset": (("lm", "ss", "icat"), "stereoset/dev.jsonl"),
}
MASKED = [f"{name}-masked" for name in ("blimp", "crows_pairs", "stereoset")]
ALL = [*FINE_TUNED, *SCRATCH, *ZERO_SHOT, *MASKED]


def reader(name: str, given: argparse.Namespace) -> str:
    """Return the model that answers a set without training."""
    return given.masked if name in MASKED else given.causal


def command(name: str, given: argparse.Namespace) -> list[str]:
    """Return the arguments of `python -m flaxlm` that run a task."""
    workdir, of = f"--workdir={given.workdir}/{name}", name.removesuffix("-masked")
    if of in ZERO_SHOT:
        line = ["evaluate", f"--workdir={reader(name, given)}", f"--config.task.name={of}",
                f"--config.data.path=DATA/{ZERO_SHOT[of][1]}"]  # fmt: skip
    elif name in SCRATCH:
        line = ["train", workdir, *SCRATCH[name][1]]
    else:
        chosen = FINE_TUNED[name][1]
        if not any("task.name" in option for option in chosen):
            chosen = [f"--config.task.name={name}", *chosen]
        recipe = "--config=configs/finetune.py"
        line = ["train", recipe, workdir, f"--config.init={given.model}", *chosen]
    return [part.replace("DATA", given.data) for part in line]


def scores_of(name: str, given: argparse.Namespace) -> dict:
    """Return the scores of a task."""
    of, place = name.removesuffix("-masked"), pathlib.Path(given.workdir, name)
    if of in ZERO_SHOT:
        place = model = reader(name, given)
        if model.startswith("hf:"):  # where results of a Hugging Face model lie
            place = "runs/hf-" + re.sub(r"[^\w.-]+", "-", model.removeprefix("hf:")).strip("-.")
        return json.loads(pathlib.Path(place, "evaluations", of, "scores.json").read_text())
    (found,) = place.glob("evaluations/*/scores.json")
    return json.loads(found.read_text())


def main() -> None:
    """Run what is not there yet, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("data", "model", "causal", "masked", "workdir", "csv"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--tasks", default=",".join(ALL))
    given = parser.parse_args()
    times = pathlib.Path(given.workdir) / "seconds.json"
    times.parent.mkdir(parents=True, exist_ok=True)
    seconds = json.loads(times.read_text()) if times.exists() else {}
    for name in given.tasks.split(","):
        if name in seconds:
            continue
        line = command(name, given)
        print("python -m flaxlm", shlex.join(line), flush=True)
        began = time.monotonic()
        if subprocess.run([sys.executable, "-m", "flaxlm", *line]).returncode:
            print(f"{name} failed", flush=True)
            continue
        seconds[name] = round(time.monotonic() - began)
        times.write_text(json.dumps(seconds))
    with open(given.csv, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["task", "metric", "value", "low", "high", "seconds"])
        for name, spent in seconds.items():
            scores = scores_of(name, given)
            metrics = (FINE_TUNED | SCRATCH | ZERO_SHOT)[name.removesuffix("-masked")][0]
            for metric in [metrics] if isinstance(metrics, str) else metrics:
                row = [scores.get(metric + end) for end in ("", "_low", "_high")]
                writer.writerow([name, metric, *row, spent])


if __name__ == "__main__":
    main()
