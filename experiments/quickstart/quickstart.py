"""The main job in one command: tokenize, pre-train, fine-tune, compare with scratch, generate.

`make quickstart FAMILY=gpt|bert|t5` runs this. Every stage is a `python -m flaxlm` command, which
is printed, so that it can be run by hand; a stage whose result stands already is not run again.
"""

import argparse
import json
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
RECIPE = "configs/quickstart.py"
PROMPTS = {
    "gpt": ["def read(self, size=-1):\n", "Return True if", "import "],
    "bert": [
        "Return the [MASK] of the list.",
        "def __init__([MASK], name):",
        "if not isinstance(name, [MASK]):",
    ],
    "t5": [
        "def close(self):\n    if self.fp is not None:\n        self.fp.close()\n"
        "        self.fp = None",
        "def is_empty(self):\n    return len(self._queue) == 0",
    ],
}
SCORES = {"gpt": ["accuracy"], "bert": ["accuracy"], "t5": ["loss", "rouge_l"]}


def stages(family: str, runs: pathlib.Path) -> list[tuple[str, pathlib.Path, str, list[str]]]:
    """Return (title, run directory, key of result.json that proves it is done, arguments)."""
    base, tuned, scratch = runs / "pretrain", runs / "finetune", runs / "scratch"
    pretrain = f"--config={RECIPE}:family={family}"
    finetune = [f"--config={RECIPE}:family={family},stage=finetune", f"--config.init={base}"]
    prompts = [f"--prompt={prompt}" for prompt in PROMPTS[family]]
    options = {
        "gpt": ["--temperature=0.7", "--top_k=40", "--max_new_tokens=48", "--seed=1"],
        "bert": ["--top_k=40"],  # alternatives for each [MASK]
        "t5": ["--temperature=0", "--max_new_tokens=32"],
    }[family]
    writer = tuned if family == "t5" else base
    return [
        ("tokenize", base, "train/tokens", ["tokenize", pretrain]),
        ("pre-train", base, "valid/loss", ["train", pretrain]),
        ("evaluate", base, "test/loss", ["evaluate", "--split=test"]),
        ("fine-tune", tuned, "valid/loss", ["train", *finetune]),
        ("evaluate", tuned, "test/loss", ["evaluate", "--split=test"]),
        (
            "fine-tune from scratch",
            scratch,
            "valid/loss",
            ["train", *finetune, "--config.init_weights=False"],
        ),
        ("evaluate", scratch, "test/loss", ["evaluate", "--split=test"]),
        ("generate", writer, "generate/texts", ["generate", *options, *prompts]),
    ]


def read_result(run: pathlib.Path) -> dict:
    """Return a run's `result.json`, or nothing: of a damaged one the command makes another."""
    try:
        return json.loads((run / "result.json").read_text())
    except (OSError, ValueError):
        return {}


def passing_signals_on(command: list[str]) -> int:
    """Run a command, which a signal to this script lets save and end; return its exit code."""
    # In a group of its own Ctrl-C comes to it once, by way of this script: twice would end it.
    child = subprocess.Popen(command, cwd=ROOT, process_group=0)
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(n, lambda n, _: child.send_signal(n)) for n in numbers]
    try:
        return child.wait()
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def run_stage(number: str, title: str, run: pathlib.Path, done: str, arguments: list[str]) -> float:
    """Run one command unless its result stands; return the seconds it took."""
    name = f"[{number}] {title}: {run.relative_to(ROOT) if run.is_relative_to(ROOT) else run}"
    if done in read_result(run):
        print(f"{name}  (done before)", flush=True)
        return 0.0
    command = ["-m", "flaxlm", arguments[0], f"--workdir={run}", *arguments[1:]]
    print(f"\n{name}\n$ python {shlex.join(command)}", flush=True)
    start = time.monotonic()
    code = passing_signals_on([sys.executable, *command])
    if code:
        print(f"stopped with exit code {code}; the same command goes on from here")
        raise SystemExit(code)
    return time.monotonic() - start


def rows(run: pathlib.Path, key: str) -> tuple[list, list]:
    """Return (steps, values) of one metric of a run."""
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    found = [(row["step"], row[key]) for row in found if key in row]
    return [step for step, _ in found], [value for _, value in found]


def plot(family: str, runs: pathlib.Path, path: pathlib.Path) -> None:
    """Draw the learning curves: pre-training on the left, fine-tuning against scratch right."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), constrained_layout=True)
    left.plot(*rows(runs / "pretrain", "loss"), color="#9db4c8", linewidth=1, label="train")
    left.plot(*rows(runs / "pretrain", "valid/loss"), "o-", color="#1f4e79", label="held out")
    left.set(title=f"{family}: pre-training", xlabel="step", ylabel="loss (nats per target)")
    metric = SCORES[family][0]
    for name, label, color in (
        ("finetune", "from the pre-trained model", "#1f4e79"),
        ("scratch", "from scratch", "#c0504d"),
    ):
        right.plot(*rows(runs / name, f"valid/{metric}"), "o-", color=color, label=label)
    right.set(title=f"{family}: fine-tuning", xlabel="step", ylabel=f"held-out {metric}")
    for axes in (left, right):
        axes.legend(frameon=False)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


def summary(family: str, runs: pathlib.Path) -> str:
    """Return what came out, as text: pre-trained against scratch, with 95 % intervals."""
    pretrained, tuned, scratch = (
        read_result(runs / n) for n in ("pretrain", "finetune", "scratch")
    )
    perplexity = pretrained.get("test/perplexity", float("nan"))
    lines = [f"pre-training   held-out perplexity {perplexity:.1f}"]
    for metric in SCORES[family]:
        key = f"test/{metric}"
        scale, unit = (100, " %") if metric != "loss" else (1, "")
        for name, result in (("fine-tuned", tuned), ("from scratch", scratch)):
            text = f"{name:14} test {metric} {scale * result[key]:.2f}{unit}"
            if f"{key}_low" in result:
                low, high = scale * result[f"{key}_low"], scale * result[f"{key}_high"]
                text += f"  (95 % interval {low:.2f} to {high:.2f})"
            lines.append(text)
        gain = scale * (tuned[key] - scratch[key])
        lines.append(f"gain of pre-training: {gain:+.2f}{' points' if unit else ''}")
    return "\n".join(lines)


def main() -> None:
    """Run all stages, then draw and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--family", default="gpt", choices=sorted(PROMPTS))
    parser.add_argument("--runs", default=str(ROOT / "runs"))
    given = parser.parse_args()
    runs = pathlib.Path(given.runs).absolute() / f"quickstart-{given.family}"
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    todo = stages(given.family, runs)
    seconds = [run_stage(f"{i}/{len(todo) + 1}", *stage) for i, stage in enumerate(todo, start=1)]
    picture = runs / "curves.png"
    plot(given.family, runs, picture)
    print(f"\n[{len(todo) + 1}/{len(todo) + 1}] learning curves: {picture}")
    print(f"\n{summary(given.family, runs)}")
    print(f"\n{sum(seconds):.0f} s; everything is under {runs}")


if __name__ == "__main__":
    main()
