"""Tokens per second and core of batches made from a token cache, each objective, one thread.

    python experiments/2026-11-22_batches/bench.py --path=CORPUS [--workdir=DIR] [--csv=FILE]

What counts is a real column (no padding) of the row that the model reads: `tokens`, and for span
corruption `encoder_tokens`. Time is the processor time of the process, the best of several rounds
over fresh batches, so that a busy machine does not show.
"""

import csv
import pathlib
import sys
import tempfile
import time

import numpy as np
from absl import app, flags

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

from flaxlm.data import cache as token_cache
from flaxlm.data.pipeline import Batches
from flaxlm.data.shards import open_cache
from flaxlm.data.sources import DataConfig
from flaxlm.data.tokenizer import TokenizerConfig
from flaxlm.objectives import OBJECTIVES

PATH = flags.DEFINE_string("path", "stdlib", "The corpus: a file, a glob, a folder or stdlib.")
FIELD = flags.DEFINE_string("field", "text", "The text's field in JSON lines.")
DOCUMENT = flags.DEFINE_string("document", "file", "What a document is: file, line, paragraph.")
WORKDIR = flags.DEFINE_string(
    "workdir", "", "Where tokenizer and cache are kept; default: nowhere."
)
CSV = flags.DEFINE_string("csv", "", "Write the table here too.")
SECONDS = flags.DEFINE_float("seconds", 2.0, "Measured time of each case.")

BATCH_TOKENS = 16_384
CASES = {
    "causal": ("causal_lm", {}),
    "prefix": ("causal_lm", {"prefix": True}),
    "mlm": ("masked_lm", {"nsp": False}),
    "mlm+nsp": ("masked_lm", {}),
    "mlm+nsp whole word": ("masked_lm", {"whole_word": True}),
    "spans": ("span_corruption", {}),
}


def rate(batches) -> float:
    """Return real tokens a second of processor time, in the best of five rounds."""
    step, best = 0, 0.0
    batches[0]
    for _ in range(5):
        tokens, start = 0, time.process_time()
        while time.process_time() - start < SECONDS.value / 5:
            step += 1
            batch = batches[step]
            real = batch.get("encoder_segment_ids", batch["segment_ids"])
            tokens += np.count_nonzero(real)
        best = max(best, tokens / (time.process_time() - start))
    return best


def measure(workdir: str) -> list[dict]:
    data = DataConfig(
        path=PATH.value,
        field=FIELD.value,
        document=DOCUMENT.value,
        sentences=True,
        valid_fraction=0.0,
    )
    tokenizer, (directory,) = token_cache.prepare(data, TokenizerConfig(), workdir)
    cache = open_cache(directory, "train", tokenizer.hash)
    print(f"{cache.num_tokens:,} tokens in {cache.counts['documents']:,} documents")
    rows = []
    for name, (objective, fields) in CASES.items():
        for length in (128, 512, 1024):
            task = OBJECTIVES[objective](**fields)
            start = time.perf_counter()
            plan = task.plan(cache, length, tokenizer, seed=0, shuffle=True)
            built = time.perf_counter() - start
            batches = Batches(plan, task, tokenizer, length, 0, BATCH_TOKENS // length)
            found = rate(batches)
            padding = plan.report["padding"]
            rows.append(
                dict(
                    case=name,
                    length=length,
                    million_tokens_per_second=round(found / 1e6, 1),
                    padding=round(padding, 4),
                    plan_seconds=round(built, 2),
                )
            )
            print(
                f"{name:20} length {length:5} {found / 1e6:7.1f} Mtok/s a core   "
                f"padding {padding:6.2%}   plan {built:5.2f} s",
                flush=True,
            )
    return rows


def main(_) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        rows = measure(WORKDIR.value or scratch)
    if CSV.value:
        with open(CSV.value, "w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    app.run(main)
