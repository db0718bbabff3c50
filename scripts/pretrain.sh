#!/usr/bin/env bash
# Stage 1, pretraining of the adapter:  bash scripts/pretrain.sh [CONFIG] [key=value ...]
#
# CONFIG      a yaml file; default configs/emma-7b.yaml where CUDA is present, else configs/tiny.yaml
# key=value   overrides, such as pretrain.learning_rate=5e-4; --resume auto|never|PATH is passed on too
#
# Starts one process per GPU, on all nodes of a Slurm allocation, through torchrun; emma/train/README.md says more.
# NPROC_PER_NODE=2 sets the number of processes; EMMA_DRY_RUN=1 prints the command and runs nothing.
set -euo pipefail
# shellcheck source=scripts/_train.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/_train.sh"
train pretrain "$@"
