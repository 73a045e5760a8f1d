#!/usr/bin/env bash
# Run a recipe on one machine (all its devices) and start it again as long as it asks for that:
# exit code 75 means "saved, restart me" (preempted, or a peer died). Anything else ends the loop,
# and so does a signal to this script, which is passed on: the run saves, and is not started again.
#
#   experiments/launchers/one_machine.sh configs/gpt_small.py runs/gpt_small \
#       --config.data.path='text/*.jsonl.zst'
set -u
set -m # the run has a process group of its own: Ctrl-C comes to it once, by way of this script
config=$1 workdir=$2
shift 2
asked="" child=""
for name in INT TERM HUP; do
  trap "asked=yes; [ -z \"\$child\" ] || kill -s $name \"\$child\" 2>/dev/null" $name
done
while true; do
  python -m flaxlm train --config="$config" --workdir="$workdir" "$@" &
  child=$!
  # A signal ends `wait` and not the run.
  until wait "$child"; code=$?; ! kill -0 "$child" 2>/dev/null; do :; done
  wait "$child"
  code=$? child=""
  { [ "$code" -eq 75 ] && [ -z "$asked" ]; } || exit "$code"
  echo "restarting in 5 s" >&2
  sleep 5 &
  wait $!
  [ -z "$asked" ] || exit "$code"
done
