#!/bin/sh
# Needs the test extras (torch, transformers): `make test` installs them.
set -eu
cd "$(dirname "$0")/../.."
PYTHONPATH=. .venv/bin/python experiments/2026-11-24_loading/measure.py --rounds=5 \
  --csv=experiments/2026-11-24_loading/results.csv
