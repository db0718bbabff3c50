# shellcheck shell=bash
# Sourced by pretrain.sh and finetune.sh, which differ in the stage only: chooses the config and starts the processes.

# shellcheck source=scripts/_env.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/_env.sh"
# shellcheck source=scripts/_launch.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/_launch.sh"

train() { # STAGE [CONFIG] [argument ...]
    local stage="$1" config gpus
    shift
    gpus="$(count_gpus)"
    if [[ "${1-}" == *.yaml || "${1-}" == *.yml || -f "${1-}" ]]; then
        config="$1"
        shift
    elif [ "$gpus" -gt 0 ]; then
        config="$EMMA_CHECKOUT/configs/emma-7b.yaml"
        say "no config given; CUDA is present, so this is configs/emma-7b.yaml"
    else
        config="$EMMA_CHECKOUT/configs/tiny.yaml"
        say "no config given; there is no CUDA, so this is configs/tiny.yaml (configs/emma-7b.yaml needs GPUs)"
    fi
    launch "$gpus" "$stage" "$config" "$@"
}
