#!/usr/bin/env bash
# Several GPU nodes without a scheduler: through ssh, one process for each node, with all its GPUs. Each node has a clone with its
# environment in the directory bert_jax; the nodes reach ports 8476 and 8477 of the first one.
#
#   HOSTS="node0 node1" experiments/launch/nodes.sh experiments/dynamic_masking.py --data.corpus /shared/corpus --run /shared/run
#   ssh node0 tail -f bert_jax/bert.log
#   ssh node0 'kill $(cat bert_jax/bert.pid)'          # saves the run and ends it on all nodes
#   HOSTS="node0 node1" ONLY=1 experiments/launch/nodes.sh ...     # after node1 was away: start it there again
set -euo pipefail
read -ra nodes <<<"$HOSTS"
for index in ${ONLY:-"${!nodes[@]}"}; do
  printf -v command '%q ' experiments/launch/restart.sh "$@" --train.distributed --train.coordinator "${nodes[0]}:${PORT:-8476}" \
    --train.processes "${#nodes[@]}" --train.process-id "$index"
  ssh -n "${nodes[index]}" "cd ${DIRECTORY:-bert_jax} || exit
    PATH=\$PWD/.venv/bin:\$PATH nohup $command >bert.log 2>&1 & echo \$! >bert.pid"
done
