#!/usr/bin/env bash
# Slurm with GPUs: one process for each GPU, in a clone with its environment on a shared file system.
#
#   sbatch --nodes 4 experiments/launch/slurm.sh experiments/dynamic_masking.py --data.corpus /shared/corpus --run /shared/run
#   scancel --batch --signal=TERM JOB       # saves the run and ends the job; the same sbatch resumes it
#
# Plain `scancel JOB` kills srun before the run is saved. The run is also saved ten minutes before the time limit and when Slurm sends
# SIGTERM to the processes, and the job returns to the queue. So it does after a crash, but not after a user's mistake (2).
#SBATCH --job-name=bert
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@600
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -u
PATH=$PWD/.venv/bin:$PATH
stopped=
trap 'scancel --signal=TERM "$SLURM_JOB_ID"' USR1
trap 'stopped=yes; scancel --signal=TERM "$SLURM_JOB_ID"' TERM
# Processes that are still saving must not be killed when the first of them ends.
srun --kill-on-bad-exit=0 bert-jax pretrain "$@" --train.distributed &
wait $!
wait $! # a signal ends the first wait
status=$?
if [[ ! $stopped && $status != [02] ]] && ((status == 143 || ${SLURM_RESTART_COUNT:-0} < 20)); then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
