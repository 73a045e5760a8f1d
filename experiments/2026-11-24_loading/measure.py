"""Load a GPT-2-124M-shaped directory and compute once: time and memory, against `transformers`.

Each measurement is a process of its own, as loading is: ours onto one device, ours onto a mesh of 8
virtual CPU devices (parameters split over all of them), and torch's. Time is from the call that
loads to the first logits, imports not counted, our compilation included; memory is the peak while
loading above what the process had before, in sizes of the file. The batch is 8 rows of 512 tokens.

    python experiments/2026-11-24_loading/measure.py --rounds=5 --csv=results.csv
"""

import argparse
import csv
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

B, L = 8, 512
SIDES = ("ours", "ours_mesh", "torch")


def memory(key: str) -> int:
    """Return VmRSS (now) or VmHWM (the most so far) of this process in bytes."""
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024
    raise SystemExit(f"/proc/self/status has no {key}")


def ours(directory: str, devices: int) -> dict:
    """Load with flaxlm; onto one device, or split over all."""
    import jax

    jax.config.update("jax_num_cpu_devices", devices)
    import numpy as np

    from flaxlm import ShardingConfig, from_pretrained

    batch = {
        "tokens": np.arange(B * L, dtype=np.int32).reshape(B, L),
        "segment_ids": np.ones((B, L), np.int32),
    }
    jax.numpy.zeros(8).block_until_ready()
    sharding = ShardingConfig(data=1, fsdp=4, tensor=2) if devices > 1 else None
    before, begun = memory("VmRSS"), time.perf_counter()
    model = from_pretrained(directory, sharding=sharding)
    jax.block_until_ready(model.params)
    loaded, peak = time.perf_counter(), memory("VmHWM")
    model(batch)["lm"].block_until_ready()
    done = time.perf_counter()
    return {"load": loaded - begun, "first": done - begun, "memory": peak - before}


def theirs(directory: str) -> dict:
    """Load with transformers."""
    import torch
    from transformers import GPT2LMHeadModel

    before, begun = memory("VmRSS"), time.perf_counter()
    model = GPT2LMHeadModel.from_pretrained(directory).eval()
    loaded, peak = time.perf_counter(), memory("VmHWM")
    with torch.no_grad():
        model(input_ids=torch.arange(B * L).reshape(B, L))
    done = time.perf_counter()
    return {"load": loaded - begun, "first": done - begun, "memory": peak - before}


def make(directory: pathlib.Path) -> None:
    """Write a random GPT-2 of 124 million parameters in its own process."""
    code = (
        "import sys, torch, transformers; torch.manual_seed(0); "
        "transformers.GPT2LMHeadModel(transformers.GPT2Config()).save_pretrained(sys.argv[1])"
    )
    subprocess.run([sys.executable, "-c", code, directory], check=True, capture_output=True)


def child(side: str, directory: pathlib.Path) -> dict:
    """Return what one measurement printed."""
    command = [sys.executable, __file__, f"--side={side}", f"--directory={directory}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure(rounds: int) -> list[dict]:
    """Return a row for each measurement, the sides alternating."""
    rows = []
    with tempfile.TemporaryDirectory() as root:
        directory = pathlib.Path(root) / "gpt2"
        make(directory)
        size = os.path.getsize(directory / "model.safetensors")
        for number in range(rounds):
            for side in SIDES:
                row = child(side, directory)
                row = {"round": number, "side": side} | row | {"memory": row["memory"] / size}
                rows.append({k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--csv")
    parser.add_argument("--side", choices=SIDES)
    parser.add_argument("--directory")
    given = parser.parse_args()
    if given.side:
        devices = {"ours": 1, "ours_mesh": 8}.get(given.side)
        result = ours(given.directory, devices) if devices else theirs(given.directory)
        print(json.dumps(result))
        return
    rows = measure(given.rounds)
    if given.csv:
        with open(given.csv, "w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    for side in SIDES:
        own = [row for row in rows if row["side"] == side]
        middle = {k: statistics.median(r[k] for r in own) for k in ("load", "first", "memory")}
        print(f"{side:10} " + "  ".join(f"{k} {v:.2f}" for k, v in middle.items()))


if __name__ == "__main__":
    main()
