#!/usr/bin/env bash
# One machine with several GPUs, without `xmodel run` around it: the stages before it must stand (`xmodel tokens RUN`).
#
#   launch/one-node.sh runs/xmodel-lm-1.1b          # all GPUs of this machine
#   GPUS=7 launch/one-node.sh runs/xmodel-lm-1.1b
#
# `xmodel pretrain RUN --processes 7 pretrain.max_restarts=10` does the same and keeps the run's lock and record.
set -euo pipefail
run=${1:?usage: launch/one-node.sh RUN}
gpus=${GPUS:-gpu}                       # torchrun's word for "as many as there are"

export OMP_NUM_THREADS=${OMP_NUM_THREADS:-8}
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=120   # seconds to save in when asked to stop (torch 2.11 knows only 30)
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1  # a restart must not find the addresses of the processes before
export PYTORCH_ALLOC_CONF=${PYTORCH_ALLOC_CONF:-expandable_segments:True}

# A process that dies takes the others with it; torchrun starts all again, and they go on from the newest checkpoint.
exec torchrun --standalone --nproc-per-node "$gpus" --max-restarts "${RESTARTS:-10}" \
    -m xmodel pretrain --worker "$run"
