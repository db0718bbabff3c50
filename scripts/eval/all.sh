#!/usr/bin/env bash
# Every benchmark whose files are here, in one table:  bash scripts/eval/all.sh [CHECKPOINT] [key=value ...]
#
# CHECKPOINT  a model folder; default: the last quickstart model
# key=value   data=world batch_size=16 max_new_tokens=N device=cpu dtype=float32 restart=true
#             image_control=none|blank|removed instruction_control=none|empty|shuffled|unrelated
# Data: playground/data/eval/BENCHMARK each; for a checkpoint of the tiny world, the world's sets in these formats.
# Answers go to CHECKPOINT/eval/BENCHMARK, the table to CHECKPOINT/eval/report.md, .html and .json.
set -euo pipefail
# shellcheck source=scripts/_env.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/../_env.sh"
exec "$PYTHON" -m emma.eval all "$@"
