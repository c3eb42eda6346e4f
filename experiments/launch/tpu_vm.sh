#!/usr/bin/env bash
# Cloud TPU VMs as a queued resource; the same container starts on every worker.
#
#   export TPU=bert PROJECT=... ZONE=... IMAGE=REGION-docker.pkg.dev/...     # IMAGE: see Dockerfile
#   experiments/launch/tpu_vm.sh create --accelerator-type v5litepod-16 --runtime-version v2-alpha-tpuv5-lite --spot
#   experiments/launch/tpu_vm.sh run experiments/dynamic_masking.py --train.distributed --data.corpus gs://BUCKET/corpus --run gs://BUCKET/run
#   experiments/launch/tpu_vm.sh log
#   experiments/launch/tpu_vm.sh stop          # saves the run; `run` resumes it
#   experiments/launch/tpu_vm.sh delete        # also after a preemption; then `create` and `run` again
set -euo pipefail
at=(--project "$PROJECT" --zone "$ZONE")
on_workers() { gcloud compute tpus tpu-vm ssh "$TPU" "${at[@]}" --worker="$1" --command "$2"; }
action=$1 && shift
case $action in
create) gcloud compute tpus queued-resources create "$TPU" "${at[@]}" --node-id "$TPU" "$@" ;;
run)
  printf -v arguments '%q ' "$@"
  on_workers all "sudo gcloud auth configure-docker ${IMAGE%%/*} --quiet
    sudo docker run --detach --name bert --init --privileged --net host --stop-timeout 300 \
      --entrypoint experiments/launch/restart.sh $IMAGE $arguments"
  ;;
log) on_workers 0 "sudo docker logs --follow bert" ;;
stop) on_workers all "sudo docker stop bert && sudo docker rm bert" ;;
delete) gcloud compute tpus queued-resources delete "$TPU" "${at[@]}" --force ;;
*) echo "tpu_vm.sh: there is no action $action; use create, run, log, stop or delete." >&2 && exit 2 ;;
esac
