#!/usr/bin/env bash
# Stage 2, instruction tuning of adapter and LLM:  bash scripts/finetune.sh [CONFIG] [key=value ...]
#
# CONFIG      a yaml file; default configs/emma-7b.yaml where CUDA is present, else configs/tiny.yaml
# key=value   overrides, such as finetune.learning_rate=1e-5; --resume auto|never|PATH is passed on too
# Starts from the pretraining of the same config, unless finetune.init says otherwise.
#
# Starts one process per GPU, on all nodes of a Slurm allocation, through torchrun; emma/train/README.md says more.
# NPROC_PER_NODE=2 sets the number of processes; EMMA_DRY_RUN=1 prints the command and runs nothing.
set -euo pipefail
# shellcheck source=scripts/_train.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/_train.sh"
train finetune "$@"
