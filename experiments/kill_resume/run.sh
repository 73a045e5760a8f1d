#!/bin/sh
# Ten killed runs of each family on CORPUS (JSON lines with a `text` field), dropout on.
set -eu
cd "$(dirname "$0")/../.."
for family in ${FAMILIES:-gpt bert t5}; do
  case $family in
    gpt) set -- --config=configs/quickstart.py:family=gpt --config.model.width=64 ;;
    bert) set -- --config=configs/bert_base.py:bert_tiny --config.model.width=64 \
      --config.tokenizer.vocab_size=4096 --config.optimizer.warmup_steps=30 ;;
    t5) set -- --config=configs/quickstart.py:family=t5 --config.model.width=64 ;;
  esac
  .venv/bin/python experiments/kill_resume/kill_resume.py --runs="${RUNS:-10}" --kills=2 \
    --workdir="runs/kill-$family" --csv="experiments/kill_resume/$family.csv" -- "$@" \
    --config.data.path="${CORPUS:?}" --config.data.valid_fraction=0.0 \
    --config.data.test_fraction=0.0 --config.eval.split= --config.checkpoint.every=10 \
    --config.train.steps=300 --config.train.batch_size=8 --config.train.length=64 \
    --config.model.num_layers=2 --config.model.embed_dropout=0.1 \
    --config.model.attention_dropout=0.1 --config.model.residual_dropout=0.1
done
