#!/usr/bin/env bash
# From a clone to a trained EMMA that answers questions, on a CPU:  bash scripts/quickstart.sh [--fast] [--output DIR]
#
# Sets up the environment (once), makes a small visual world, pretrains, fine-tunes, evaluates and asks one question.
# Stopped and started again, it goes on where it was. --fast is a shortened run for tests, too short to learn much.
set -euo pipefail
# shellcheck source=scripts/_env.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/_env.sh"
exec "$PYTHON" -m emma.world.quickstart "$@"
