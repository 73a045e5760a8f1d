#!/bin/sh
# Killed runs of each family of tasks: real sets in DATA, from the Hugging Face language model MODEL.
# One kill a run comes after the last step, in the evaluation that writes the predictions.
set -eu
cd "$(dirname "$0")/../.."
part() { # a share of one file, held out
  echo "--config.data.path=$1 --config.data.split=hash --config.data.valid_path= --config.data.valid_fraction=0.1"
}
pair() {
  echo "--config.data.path=$1 --config.data.valid_path=$2"
}
for task in ${TASKS:-classification regression similarity tagging question_answering text_to_text}; do
  length=32 recipe=configs/finetune.py
  case $task in
    classification) options="sst2 $(pair "$DATA/glue_sst2/train.tsv" "$DATA/glue_sst2/dev.tsv")" ;;
    regression) options="stsb $(pair "$DATA/glue_stsb/train.jsonl" "$DATA/glue_stsb/dev.jsonl")" length=64 ;;
    similarity) options="similarity $(pair "$DATA/glue_stsb/train.jsonl" "$DATA/glue_stsb/dev.jsonl")" ;;
    tagging) options="wnut17 $(pair "$DATA/wnut17/train.conll" "$DATA/wnut17/dev.conll")" length=64 ;;
    question_answering) options="squad $(part "$DATA/squad/train-v1.1-subset.json.gz")" length=256 ;;
    text_to_text)
      recipe=configs/text_to_text.py:pretrained length=256
      options="dialogsum $(part "$DATA/dialogsum/dev.jsonl") --config.data.test_path="
      ;;
  esac
  # shellcheck disable=SC2086 # the options are words
  .venv/bin/python experiments/kill_resume/kill_resume.py --runs="${RUNS:-2}" --kills=2 --report \
    --workdir="runs/kill-$task" --csv="experiments/kill_resume/$task.csv" -- \
    --config=$recipe --config.init="hf:$MODEL" --config.task.name=$options \
    --config.train.steps="${STEPS:-60}" --config.train.epochs=0.0 --config.train.batch_size=8 \
    --config.train.length=$length --config.checkpoint.every=10 --config.eval.every=20 \
    --config.model.residual_dropout=0.1
done
