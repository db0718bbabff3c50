#!/usr/bin/env bash
# R-Bench:  bash scripts/eval/rbench.sh [CHECKPOINT] [key=value ...]
#
# CHECKPOINT  a model folder; default: the last quickstart model
# key=value   data=DIR|world images=DIR output=DIR batch_size=16 shard=K/N max_new_tokens=N device=cpu
#             dtype=float32 restart=true image_control=none|blank|removed instruction_control=none|empty|shuffled|unrelated
# Its own settings: level=image|instance; marks=boxes|none.
# Data: playground/data/eval/rbench with image-level_filterd.json, nocaps_image-level_rel_ids_{1..5}.json and
#   the folder images.
# Answers and report go to CHECKPOINT/eval/rbench; a run that was stopped goes on when it is started again.
set -euo pipefail
# shellcheck source=scripts/_env.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/../_env.sh"
exec "$PYTHON" -m emma.eval run rbench "$@"
