#!/usr/bin/env bash
# All tests:  bash scripts/test.sh [--all] [pytest argument ...]
#
# --all       the slow tests too (minutes each)
# Without further arguments ruff and mypy run first. Paths among the arguments are relative to the checkout.
set -euo pipefail
# shellcheck source=scripts/_env.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/_env.sh"
cd -- "$EMMA_CHECKOUT"
export HF_HUB_OFFLINE=1 WANDB_MODE=offline # no test may need a network

markers="not slow"
if [ "${1-}" = --all ]; then
    markers=""
    shift
fi
if [ $# -eq 0 ]; then
    "$PYTHON" -m ruff check .
    "$PYTHON" -m ruff format --check .
    "$PYTHON" -m mypy
fi
exec "$PYTHON" -m pytest -m "$markers" "$@"
