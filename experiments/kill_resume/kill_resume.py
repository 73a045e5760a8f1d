"""Prove that a killed run equals an uninterrupted one, for any config.

Runs `python -m flaxlm train` once to its end, then again and again in fresh directories: killed
with SIGKILL at random moments (every other time while a checkpoint is being written; with --report
once more after the last step, while the evaluation that ends a run is made) and started again by
the same command until it ends. The digests that `inspect` prints must be the same, and of a
fine-tuning run every file of predictions, byte for byte.

    python experiments/kill_resume/kill_resume.py --runs=10 --workdir=runs/kill -- \
        --config=configs/quickstart.py --config.train.steps=300 --config.checkpoint.every=20
"""

import argparse
import csv
import functools
import hashlib
import json
import math
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

DIGESTS = ("step", "digest/params", "digest/opt_state", "digest/next_batch")


def command(verb: str, workdir: pathlib.Path, arguments: list[str]) -> list[str]:
    """Return the command line of one verb."""
    return [sys.executable, "-m", "flaxlm", verb, f"--workdir={workdir}", *arguments]


def inspect(workdir: pathlib.Path) -> dict:
    """Return the digests of a finished run."""
    done = subprocess.run(command("inspect", workdir, []), capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"inspect failed: {done.stderr}")
    result = json.loads((workdir / "result.json").read_text())
    found = {name: result[name] for name in DIGESTS}
    for path in sorted(workdir.glob("evaluations/*/predictions.jsonl")):
        digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
        found[f"{path.parent.name}/predictions"] = digest
    return found


def saving(workdir: pathlib.Path) -> bool:
    """Return whether a checkpoint is being written at this moment."""
    folder = workdir / "checkpoints"
    return folder.is_dir() and any(p.name.startswith(".writing-") for p in folder.iterdir())


def started(workdir: pathlib.Path, since: float) -> bool:
    """Return whether training steps have been logged since `since`."""
    path = workdir / "metrics.jsonl"
    return path.exists() and path.stat().st_mtime > since and path.stat().st_size > 0


def trained(workdir: pathlib.Path, step: int) -> bool:
    """Return whether the checkpoint of a step is there."""
    return (workdir / "checkpoints" / f"step_{step:08d}").is_dir()


def run_until_killed(
    workdir: pathlib.Path, arguments: list[str], log, patience: float = math.inf, moment=None
) -> tuple[bool, bool, float]:
    """Run `train`; kill it `patience` seconds after its first logged step.

    Args:
      workdir, arguments: of the run.
      log: takes what it prints.
      patience: in seconds.
      moment: returns whether this is a moment to kill at, after that; any is without it.

    Returns:
      whether it was killed, whether that was during a save, and the seconds from the first logged
      step to the end.
    """
    began = time.time()
    process = subprocess.Popen(
        command("train", workdir, arguments), stdout=log, stderr=log, start_new_session=True
    )
    first = None
    while process.poll() is None:
        now = time.monotonic()
        if first is None and started(workdir, began):
            first = now
        waited = first is not None and now - first >= patience
        if waited and (moment is None or moment()):
            caught = saving(workdir)
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return True, caught, now - first
        time.sleep(0.0005)
    if process.returncode:
        raise SystemExit(f"train ended with exit code {process.returncode}; see {log.name}")
    return False, False, time.monotonic() - (first or time.monotonic())


def report_seconds(workdir: pathlib.Path) -> float:
    """Return how long the evaluation after the last checkpoint of a run took."""
    last = max(path.stat().st_mtime for path in workdir.glob("checkpoints/step_*"))
    return max(p.stat().st_mtime for p in workdir.glob("evaluations/*/scores.json")) - last


def delayed(condition, seconds: float):
    """Return a condition that holds `seconds` after the first moment at which the given one did."""
    since = []

    def holds() -> bool:
        if not since and condition():
            since.append(time.monotonic())
        return bool(since) and time.monotonic() - since[0] >= seconds

    return holds


def main() -> None:
    """Run, kill, compare; exit 1 on the first difference."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--kills", type=int, default=3, help="kills a run in training, at most")
    parser.add_argument("--report", action="store_true", help="and one in the last evaluation")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--csv", default="")
    parser.add_argument("train", nargs="+", help="arguments of train, after --")
    given = parser.parse_args()
    root, draw = pathlib.Path(given.workdir).absolute(), random.Random(given.seed)
    root.mkdir(parents=True, exist_ok=True)
    log = (root / "log.txt").open("w")
    arguments = given.train
    whole = root / "uninterrupted"
    _, _, seconds = run_until_killed(whole, arguments, log)
    wanted = inspect(whole)
    report = report_seconds(whole) if given.report else 0.0
    print(f"uninterrupted: {seconds:.1f} s of training, {wanted}", flush=True)
    rows = []
    for number in range(given.runs):
        workdir = root / f"killed-{number}"
        shutil.rmtree(workdir, ignore_errors=True)
        for made in ("tokenizer", "cache"):  # a task has no cache
            if (whole / made).exists():
                shutil.copytree(whole / made, workdir / made)
        row = {"run": number, "kills": 0, "in_save": 0, "in_report": 0}
        done = functools.partial(trained, workdir, wanted["step"])
        plans = []
        for kill in range(given.kills):
            # What is left gets shorter with each kill.
            plan = {"patience": draw.uniform(0.0, 1.0) * seconds / given.kills}
            if (number + kill) % 2:
                plan["moment"] = lambda: saving(workdir) or done()  # noqa: B023
            plans.append(plan)
        if given.report:
            late = delayed(done, draw.uniform(0.0, 1.0) * report)
            plans.append({"patience": 0.0, "moment": late})
        for plan in [*plans, {}]:
            killed, caught, _ = run_until_killed(workdir, arguments, log, **plan)
            row["kills"] += killed
            row["in_save"] += caught
            row["in_report"] += killed and done()
            if not killed:
                break
        found = inspect(workdir)
        same = found == wanted
        rows.append(row | {"same": same, **found})
        print(f"run {number}: {row}, same digests: {same}", flush=True)
        if not same:
            raise SystemExit(f"run {number} differs: {found} instead of {wanted}")
        shutil.rmtree(workdir)
    if given.csv:
        with open(given.csv, "w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    print(
        f"{len(rows)} killed runs, {sum(r['kills'] for r in rows)} kills, "
        f"{sum(r['in_save'] for r in rows)} in a save, {sum(r['in_report'] for r in rows)} after "
        "the last step: all equal the uninterrupted run"
    )


if __name__ == "__main__":
    main()
