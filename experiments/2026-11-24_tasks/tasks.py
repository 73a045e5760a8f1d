"""Fine-tune on the published sets of a folder, or score them without training; a line each.

    python experiments/2026-11-24_tasks/tasks.py --data=DIR --model=DIR --causal=DIR \
        --workdir=runs/tasks --csv=experiments/2026-11-24_tasks/results.csv [--tasks=sst2,mrpc]

`model` is a Hugging Face encoder (all-MiniLM-L6-v2), `causal` a language model. A task whose run
has ended is not run again: the rest of the table is made from what its directory holds.
"""

import argparse
import csv
import json
import pathlib
import shlex
import subprocess
import sys
import time

TRANSLATE = "--config=configs/text_to_text.py"
COUNTS = ("examples", "cut", "pairs", "questions")


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
        "f1",
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
                train__epochs=2.0, **WINDOWS),
    ),
    "squad2": (
        "f1", options(1e-4, **held_out("squad", "dev-v2.0.json.gz", 0.1), **steps(150), **WINDOWS),
    ),
    "cmrc2018": (
        "f1",
        options(
            3e-4, **held_out("cmrc2018", "trial.json.gz", 0.2), train__epochs=1.0,
            task__skip_unusable=True, task__max_answer_tokens=64, **WINDOWS,
        ),
    ),
    "chnsenticorp": (
        "accuracy",
        options(3e-4, **files("chnsenticorp", "train.jsonl", "dev.jsonl"), **CHINESE, **steps(100)),
    ),
}  # fmt: skip

# name: (metric, options of configs/text_to_text.py, an encoder-decoder from scratch)
WRITTEN = {
    "multi30k": ("bleu", ["--config.data.path=DATA/multi30k", "--config.train.epochs=3.0"]),
    "dialogsum": (
        "rouge_l",
        [
            f"--config.{key.replace('__', '.')}={value}"
            for key, value in files("dialogsum", "dev.jsonl", "test.jsonl").items()
        ],
    ),
}

# name: (metrics, file), scored by a language model as it is
ZERO_SHOT = {
    "lambada": (("accuracy", "perplexity"), "lambada/lambada_openai.jsonl"),
    "hellaswag": (("accuracy", "accuracy_norm"), "hellaswag/val.jsonl.zst"),
    "blimp": (("accuracy",), "blimp/blimp.jsonl.zst"),
    "crows_pairs": (("accuracy",), "crows_pairs/crows_pairs_anonymized.csv"),
    "stereoset": (("lm", "ss", "icat"), "stereoset/dev.jsonl"),
}


def command(name: str, given: argparse.Namespace) -> list[str]:
    """Return the arguments of `python -m flaxlm` that run a task."""
    workdir = f"--workdir={given.workdir}/{name}"
    if name in ZERO_SHOT:
        path = f"DATA/{ZERO_SHOT[name][1]}"
        line = ["evaluate", "--workdir=CAUSAL", f"--config.task.name={name}",
                f"--config.data.path={path}"]  # fmt: skip
    elif name in WRITTEN:
        line = ["train", TRANSLATE, workdir, f"--config.task.name={name}", *WRITTEN[name][1]]
    else:
        chosen = FINE_TUNED[name][1]
        if not any("task.name" in option for option in chosen):
            chosen = [f"--config.task.name={name}", *chosen]
        line = ["train", "--config=configs/finetune.py", workdir, "--config.init=hf:MODEL", *chosen]
    shown = {"DATA": given.data, "MODEL": given.model, "CAUSAL": f"hf:{given.causal}"}
    for word, value in shown.items():
        line = [part.replace(word, value) for part in line]
    return line


def scores_of(name: str, given: argparse.Namespace) -> pathlib.Path:
    """Return the file of a task's scores."""
    if name in ZERO_SHOT:
        runs = pathlib.Path("runs") / ("hf-" + pathlib.Path(given.causal).name)
        return runs / "evaluations" / name / "scores.json"
    found = list(pathlib.Path(given.workdir, name).glob("evaluations/*/scores.json"))
    return found[0] if found else pathlib.Path("nothing")


def main() -> None:
    """Run what is not there yet, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("data", "model", "causal", "workdir", "csv"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--tasks", default=",".join([*FINE_TUNED, *WRITTEN, *ZERO_SHOT]))
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
            scores = json.loads(scores_of(name, given).read_text())
            metrics = (FINE_TUNED | WRITTEN | ZERO_SHOT)[name][0]
            for metric in [metrics] if isinstance(metrics, str) else metrics:
                row = [scores.get(metric + end) for end in ("", "_low", "_high")]
                writer.writerow([name, metric, *row, spent])


if __name__ == "__main__":
    main()
