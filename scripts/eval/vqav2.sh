#!/usr/bin/env bash
# VQAv2:  bash scripts/eval/vqav2.sh [CHECKPOINT] [key=value ...]
#
# CHECKPOINT  a model folder; default: the last quickstart model
# key=value   data=DIR|world images=DIR output=DIR batch_size=16 shard=K/N max_new_tokens=N device=cpu
#             dtype=float32 restart=true image_control=none|blank|removed instruction_control=none|empty|shuffled|unrelated
# Its own settings: split=val2014|train2014|test-dev2015|test2015; predictions=processed|raw;
#   unanimous=as_is|normalised.
# Data: playground/data/eval/vqav2 with v2_OpenEnded_mscoco_{split}_questions.json,
#   v2_mscoco_{split}_annotations.json and COCO images.
# Answers and report go to CHECKPOINT/eval/vqav2; a run that was stopped goes on when it is started again.
set -euo pipefail
# shellcheck source=scripts/_env.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/../_env.sh"
exec "$PYTHON" -m emma.eval run vqav2 "$@"
