#!/usr/bin/env bash
# Trains on all GPUs of this node, or of several nodes: start it on each node with the same arguments.
#
#   docker/torchrun.sh experiment=mixer_l16_imagenet21k
#   NNODES=4 NODE_RANK=<0 to 3> MASTER_ADDR=<host of node 0> docker/torchrun.sh experiment=mixer_l16_imagenet21k
#
#   NNODES           number of nodes (1)
#   NODE_RANK        number of this node, from 0; required with several nodes
#   MASTER_ADDR      a name or address of node 0 that every node can reach; required with several nodes
#   MASTER_PORT      a free port on node 0 (29500); one node alone finds its own
#   NPROC_PER_NODE   processes on this node (gpu: one per GPU; a number tries it on CPUs)
#
# SIGTERM (`docker stop`, a scheduler) reaches torchrun because of the exec below. torchrun sends it to the whole
# process group of each of its workers and waits TORCH_ELASTIC_SHUTDOWN_TIMEOUT seconds before it kills them. A worker
# ends its step, agrees with all others on all nodes, saves and exits 143. torchrun itself then exits 1 with a
# SignalException, whatever its workers returned: look for "stopped by SIGTERM" in log.txt. The same command resumes.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."

NNODES="${NNODES:-1}"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT="${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-110}"  # docker/compose.yaml allows 120

if [[ "$NNODES" == 1 ]]; then
    meeting=(--standalone)
else
    : "${NODE_RANK:?is the number of this node, 0 to $((NNODES - 1)): set it on each node}"
    : "${MASTER_ADDR:?is the host name or address of node 0: set it on each node}"
    meeting=(--nnodes="$NNODES" --node-rank="$NODE_RANK"
             --master-addr="$MASTER_ADDR" --master-port="${MASTER_PORT:-29500}")
fi

exec torchrun "${meeting[@]}" --nproc-per-node="${NPROC_PER_NODE:-gpu}" \
    --signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1 \
    train.py trainer=ddp "$@"
