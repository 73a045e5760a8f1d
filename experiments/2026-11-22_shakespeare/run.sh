#!/bin/sh
# nanoGPT's CPU recipe, three seeds; CORPUS is tiny Shakespeare's input.txt.
set -eu
cd "$(dirname "$0")/../.."
for seed in 0 1 2; do
  .venv/bin/python -m flaxlm train --config=configs/shakespeare_char.py \
    --workdir="runs/shakespeare-$seed" --config.seed="$seed" \
    --config.data.path="${CORPUS:?set CORPUS to tiny Shakespeare}"
done
.venv/bin/python - <<'P'
import json
losses = [json.load(open(f"runs/shakespeare-{s}/result.json"))["valid/loss"] for s in range(3)]
print("valid/loss", losses, "mean", sum(losses) / 3)
P
