#!/usr/bin/env bash
# ScienceQA:  bash scripts/eval/scienceqa.sh [CHECKPOINT] [key=value ...]
#
# CHECKPOINT  a model folder; default: the last quickstart model
# key=value   data=DIR|world images=DIR output=DIR batch_size=16 shard=K/N max_new_tokens=N device=cpu
#             dtype=float32 restart=true image_control=none|blank|removed instruction_control=none|empty|shuffled|unrelated
# Its own settings: split=test|val|minitest|minival|train.
# Data: playground/data/eval/scienceqa with problems.json, pid_splits.json and
#   images/{train,val,test}/{id}/image.png (lupantech/ScienceQA).
# Answers and report go to CHECKPOINT/eval/scienceqa; a run that was stopped goes on when it is started again.
set -euo pipefail
# shellcheck source=scripts/_env.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/../_env.sh"
exec "$PYTHON" -m emma.eval run scienceqa "$@"
