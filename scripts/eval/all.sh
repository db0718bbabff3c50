#!/usr/bin/env bash
# Every benchmark whose data is present, in one table:  bash scripts/eval/all.sh [CHECKPOINT] [key=value ...]
#
# CHECKPOINT  a model folder; default: the last quickstart model. It is loaded once.
# key=value   data=DIR|world|hub output=DIR batch_size=16 shard=K/N max_new_tokens=N device=cpu dtype=float32 restart=true
#             image_control=none|blank|removed instruction_control=none|empty|shuffled|unrelated
#             and a benchmark's own settings with its name, such as scienceqa.split=val
# Data: playground/data/eval/BENCHMARK, or DIR/BENCHMARK; for a checkpoint of the tiny world, the world's sets.
# What is not there is named at the end. Answers and reports go to CHECKPOINT/eval/BENCHMARK, the table of all runs of this
# model to CHECKPOINT/eval/table.md, .json and .html. Started again, it goes on where it was stopped.
set -euo pipefail
# shellcheck source=scripts/_env.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/../_env.sh"
exec "$PYTHON" -m emma.eval all "$@"
