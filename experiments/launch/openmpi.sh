#!/usr/bin/env bash
# Open MPI: one process for each GPU, in a clone with its environment on a shared file system.
#
#   HOSTS=node0:8,node1:8 experiments/launch/openmpi.sh experiments/dynamic_masking.py --data.corpus /shared/corpus --run /shared/run
#
# Ctrl-C and SIGTERM save the run and end it, and the same command resumes it. mpirun itself would kill processes that are still saving,
# a second after SIGTERM and as soon as one of them ends with 143. So it is sent SIGUSR1, which it forwards, and is told 0.
set -um # -m: Ctrl-C reaches this script alone
process='
  set -m # mpirun signals the group of a process
  trap "kill -TERM \$!" USR1
  export JAX_LOCAL_DEVICE_IDS=$OMPI_COMM_WORLD_LOCAL_RANK
  bert-jax pretrain "$@" --train.processes "$OMPI_COMM_WORLD_SIZE" --train.process-id "$OMPI_COMM_WORLD_RANK" &
  wait $!
  wait $! # a signal ends the first wait
  status=$?
  exit $((status == 143 ? 0 : status))
'
PATH=$PWD/.venv/bin:$PATH
stopped=
trap 'stopped=yes; kill -USR1 $!' INT TERM
mpirun --host "$HOSTS" -x PATH bash -c "$process" bert "$@" --train.distributed --train.coordinator "${HOSTS%%[:,]*}:${PORT:-8476}" &
wait $!
wait $!
status=$?
[[ $stopped && $status == 0 ]] && exit 143
exit "$status"
