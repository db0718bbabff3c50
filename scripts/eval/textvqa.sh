#!/usr/bin/env bash
# TextVQA:  bash scripts/eval/textvqa.sh [CHECKPOINT] [key=value ...]
#
# CHECKPOINT  a model folder; default: the last quickstart model
# key=value   data=DIR|world images=DIR output=DIR batch_size=16 shard=K/N max_new_tokens=N device=cpu
#             dtype=float32 restart=true image_control=none|blank|removed instruction_control=none|empty|shuffled|unrelated
# Its own settings: ocr=tokens|none.
# Data: playground/data/eval/textvqa with TextVQA_0.5.1_val.json, LLaVA's llava_textvqa_val_v051_ocr.jsonl and
#   the folder train_images.
# Answers and report go to CHECKPOINT/eval/textvqa; a run that was stopped goes on when it is started again.
set -euo pipefail
# shellcheck source=scripts/_env.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/../_env.sh"
exec "$PYTHON" -m emma.eval run textvqa "$@"
