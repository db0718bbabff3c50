#!/usr/bin/env bash
# MMBench (cn):  bash scripts/eval/mmbench_cn.sh [CHECKPOINT] [key=value ...]
#
# CHECKPOINT  a model folder; default: the last quickstart model
# key=value   data=DIR|world images=DIR output=DIR batch_size=16 shard=K/N max_new_tokens=N device=cpu
#             dtype=float32 restart=true image_control=none|blank|removed instruction_control=none|empty|shuffled|unrelated
# Its own settings: file=TEXT.
# Data: playground/data/eval/mmbench_cn with the tsv of OpenCompass, such as mmbench_dev_cn_20231003.tsv.
# Answers and report go to CHECKPOINT/eval/mmbench_cn; a run that was stopped goes on when it is started again.
set -euo pipefail
# shellcheck source=scripts/_env.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/../_env.sh"
exec "$PYTHON" -m emma.eval run mmbench_cn "$@"
