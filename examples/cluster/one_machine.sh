#!/usr/bin/env bash
# One machine, a process for each of its GPUs. From the project's folder:
#
#   examples/cluster/one_machine.sh                       # all GPUs
#   GPUS=4 examples/cluster/one_machine.sh max_steps=50   # keys replace those of run.yaml
#
# After a stop, the same with --resume.
set -euo pipefail

exec torchrun --standalone --nproc-per-node "${GPUS:-gpu}" -m cohort train examples/cluster/run.yaml "$@"
