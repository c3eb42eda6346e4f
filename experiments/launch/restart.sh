#!/usr/bin/env bash
# `bert-jax pretrain` with these arguments, again after each failure; for hosts that have no scheduler. One node with all its GPUs:
#
#   experiments/launch/restart.sh experiments/quickstart.py --run runs/quickstart
#
# Ctrl-C and SIGTERM save the run and end it. If another host received the signal (143), this script ends, too; it also ends after a
# user's mistake (2). After any other status the run continues from its last checkpoint, and waits for hosts that are missing.
set -um # -m: Ctrl-C reaches this script alone, which passes on one signal
stopped=
trap 'stopped=yes; kill -TERM $!' INT TERM
while true; do
  bert-jax pretrain "$@" &
  wait $!
  wait $! # a signal ends the first wait
  status=$?
  [[ $stopped || $status == [02] || $status == 143 ]] && exit "$status"
  echo "restart.sh: bert-jax ended with status $status; it starts again in ${PAUSE:=30} seconds." >&2
  sleep "$PAUSE" &
  wait $!
  [[ $stopped ]] && exit 143
done
