#!/usr/bin/env bash
# SEED-Bench:  bash scripts/eval/seed_bench.sh [CHECKPOINT] [key=value ...]
#
# CHECKPOINT  a model folder; default: the last quickstart model
# key=value   data=DIR|world images=DIR output=DIR batch_size=16 shard=K/N max_new_tokens=N device=cpu
#             dtype=float32 restart=true image_control=none|blank|removed instruction_control=none|empty|shuffled|unrelated
# Data: playground/data/eval/seed_bench with SEED-Bench.json and the folders SEED-Bench-image,
#   SEED-Bench-video-image.
# Answers and report go to CHECKPOINT/eval/seed_bench; a run that was stopped goes on when it is started again.
set -euo pipefail
# shellcheck source=scripts/_env.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/../_env.sh"
exec "$PYTHON" -m emma.eval run seed_bench "$@"
