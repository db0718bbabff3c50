#!/usr/bin/env bash
# AMBER:  bash scripts/eval/amber.sh [CHECKPOINT] [key=value ...]
#
# CHECKPOINT  a model folder; default: the last quickstart model
# key=value   data=DIR|world images=DIR output=DIR batch_size=16 shard=K/N max_new_tokens=N device=cpu
#             dtype=float32 restart=true image_control=none|blank|removed instruction_control=none|empty|shuffled|unrelated
# Its own settings: part=all|generative|discriminative; nouns=auto|nltk|words; similarity=auto|spacy|none;
#   mapping=first_word|exact.
# Data: playground/data/eval/amber with data/annotations.json, data/query, data/relation.json,
#   data/safe_words.txt and the folder image.
# Answers and report go to CHECKPOINT/eval/amber; a run that was stopped goes on when it is started again.
set -euo pipefail
# shellcheck source=scripts/_env.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/../_env.sh"
exec "$PYTHON" -m emma.eval run amber "$@"
