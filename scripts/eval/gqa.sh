#!/usr/bin/env bash
# GQA:  bash scripts/eval/gqa.sh [CHECKPOINT] [key=value ...]
#
# CHECKPOINT  a model folder; default: the last quickstart model
# key=value   data=DIR|world images=DIR output=DIR batch_size=16 shard=K/N max_new_tokens=N device=cpu
#             dtype=float32 restart=true image_control=none|blank|removed instruction_control=none|empty|shuffled|unrelated
# Its own settings: split=testdev_balanced|val_balanced|testdev_all|val_all;
#   punctuation=full_stops|all.
# Data: playground/data/eval/gqa with questions1.2/testdev_balanced_questions.json and the folder images.
# Answers and report go to CHECKPOINT/eval/gqa; a run that was stopped goes on when it is started again.
set -euo pipefail
# shellcheck source=scripts/_env.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/../_env.sh"
exec "$PYTHON" -m emma.eval run gqa "$@"
