#!/usr/bin/env bash
# FOIL:  bash scripts/eval/foil.sh [CHECKPOINT] [key=value ...]
#
# CHECKPOINT  a model folder; default: the last quickstart model
# key=value   data=DIR|world images=DIR output=DIR batch_size=16 shard=K/N max_new_tokens=N device=cpu
#             dtype=float32 restart=true image_control=none|blank|removed instruction_control=none|empty|shuffled|unrelated
# Its own settings: subset=TEXT; rule=equality|inference.
# Data: playground/data/eval/foil with foilv1.0_test_2017.json and COCO's val2014 images.
# Answers and report go to CHECKPOINT/eval/foil; a run that was stopped goes on when it is started again.
set -euo pipefail
# shellcheck source=scripts/_env.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/../_env.sh"
exec "$PYTHON" -m emma.eval run foil "$@"
