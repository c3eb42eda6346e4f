#!/usr/bin/env bash
# xpk: the same JobSet on a cluster that xpk made.
#
#   export PROJECT=... ZONE=... CLUSTER=... IMAGE=...       # IMAGE: see Dockerfile
#   experiments/launch/xpk.sh experiments/dynamic_masking.py --train.distributed --data.corpus gs://BUCKET/corpus --run gs://BUCKET/run
#   xpk workload delete --workload bert --project "$PROJECT" --zone "$ZONE" --cluster "$CLUSTER"     # saves the run
#
# xpk restarts after the statuses 127 to 255, so after SIGTERM and crashes, and here after 1, but not after 2, a user's mistake.
set -euo pipefail
printf -v command '%q ' bert-jax pretrain "$@"
# exec: the shell that xpk wraps around a command passes SIGTERM no further than to its child.
exec xpk workload create --workload bert --project "$PROJECT" --zone "$ZONE" --cluster "$CLUSTER" \
  --tpu-type "${TPU_TYPE:-v5litepod-16}" --num-slices "${SLICES:-1}" --docker-image "$IMAGE" \
  --max-restarts 20 --restart-on-exit-codes 1 --termination-grace-period-seconds 300 \
  --command "exec $command"
