#!/usr/bin/env bash
# Run a recipe on one machine (all its devices) and start it again as long as it asks for that:
# exit code 75 means "saved, restart me" (preempted, or a peer died). Anything else ends the loop.
#
#   experiments/launchers/one_machine.sh configs/gpt_small.py runs/gpt_small \
#       --config.data.path='text/*.jsonl.zst'
set -u
config=$1 workdir=$2
shift 2
while true; do
  python -m flaxlm train --config="$config" --workdir="$workdir" "$@"
  code=$?
  [ "$code" -eq 75 ] || exit "$code"
  echo "restarting in 5 s" >&2
  sleep 5
done
