#!/bin/sh
# Needs the test extras (torch, transformers): `make test` installs them.
set -eu
cd "$(dirname "$0")/../.."
PYTHONPATH=. .venv/bin/python experiments/2026-11-22_speed/bench.py --rounds=15 \
  --csv=experiments/2026-11-22_speed/results.csv
