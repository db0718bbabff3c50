#!/usr/bin/env bash
# VizWiz:  bash scripts/eval/vizwiz.sh [CHECKPOINT] [key=value ...]
#
# CHECKPOINT  a model folder; default: the last quickstart model
# key=value   data=DIR|world images=DIR output=DIR batch_size=16 shard=K/N max_new_tokens=N device=cpu
#             dtype=float32 restart=true image_control=none|blank|removed instruction_control=none|empty|shuffled|unrelated
# Its own settings: split=val|train|test; predictions=processed|raw; ground_truth=as_is|processed.
# Data: playground/data/eval/vizwiz with Annotations/{train,val,test}.json and the folders train, val, test
#   (vizwiz.org).
# Answers and report go to CHECKPOINT/eval/vizwiz; a run that was stopped goes on when it is started again.
set -euo pipefail
# shellcheck source=scripts/_env.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/../_env.sh"
exec "$PYTHON" -m emma.eval run vizwiz "$@"
