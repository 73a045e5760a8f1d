#!/bin/sh
# Tokens per second of batches from a token cache; CORPUS is text or JSON lines with a `text` field.
set -eu
cd "$(dirname "$0")/../.."
.venv/bin/python experiments/2026-11-22_batches/bench.py \
  --path="${CORPUS:-stdlib}" --csv=experiments/2026-11-22_batches/results.csv
