#!/usr/bin/env bash
# MMMU:  bash scripts/eval/mmmu.sh [CHECKPOINT] [key=value ...]
#
# CHECKPOINT  a model folder; default: the last quickstart model
# key=value   data=DIR|world images=DIR output=DIR batch_size=16 shard=K/N max_new_tokens=N device=cpu
#             dtype=float32 restart=true image_control=none|blank|removed instruction_control=none|empty|shuffled|unrelated
# Its own settings: split=validation|dev|test.
# Data: playground/data/eval/mmmu with {Subject}/validation-00000-of-00001.parquet (data set MMMU/MMMU).
# Answers and report go to CHECKPOINT/eval/mmmu; a run that was stopped goes on when it is started again.
set -euo pipefail
# shellcheck source=scripts/_env.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/../_env.sh"
exec "$PYTHON" -m emma.eval run mmmu "$@"
