#!/usr/bin/env bash
# Two machines with the same software and a shared folder for the output. From the project's folder, on both:
#
#   examples/cluster/two_machines.sh ADDRESS_OF_THE_FIRST output_dir=/shared/run
#
# The order does not matter: each waits for the other. PORT (29500) must be open between them. NCCL takes the network that
# it finds; NCCL_SOCKET_IFNAME names another.
set -euo pipefail

first="${1:?give the address of the first machine, the same on both}"
shift

exec torchrun --nnodes 2 --nproc-per-node "${GPUS:-gpu}" \
  --rdzv-backend c10d --rdzv-id "${RUN:-cohort}" --rdzv-endpoint "$first:${PORT:-29500}" \
  -m cohort train examples/cluster/run.yaml "$@"
