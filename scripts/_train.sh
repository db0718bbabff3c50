# shellcheck shell=bash
# Sourced by pretrain.sh and finetune.sh, which differ in the stage only.

# shellcheck source=scripts/_env.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/_env.sh"

train() { # STAGE [CONFIG] [argument ...]
    local stage="$1" config
    shift
    if [[ "${1-}" == *.yaml || "${1-}" == *.yml || -f "${1-}" ]]; then
        config="$1"
        shift
    elif "$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
        config="$EMMA_CHECKOUT/configs/emma-7b.yaml"
        say "no config given; CUDA is present, so this is configs/emma-7b.yaml"
    else
        config="$EMMA_CHECKOUT/configs/tiny.yaml"
        say "no config given; there is no CUDA, so this is configs/tiny.yaml (configs/emma-7b.yaml needs GPUs)"
    fi
    exec "$PYTHON" -m emma.train "$config" --stage "$stage" "$@"
}
