# shellcheck shell=bash
# Sourced by every script here: chooses a Python environment, makes one where there is none, installs EMMA into it once.
#
# The environment is the first of
#   $EMMA_VENV        a path; made if it does not exist
#   $VIRTUAL_ENV      the active virtual environment
#   $CONDA_PREFIX     the active conda environment, unless it is conda's own "base"
#   .venv             in the checkout; made with python3.11 if there is one, else with any Python >= 3.10
# Afterwards $PYTHON is its interpreter, its programs come first on PATH, and $EMMA_CHECKOUT is the checkout. The current
# folder stays what it was, so that paths on a command line mean what the caller meant.
# EMMA_NO_INSTALL=1 takes the environment as it is (read-only container, no network).

EMMA_CHECKOUT="$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)"

say() { printf '[emma] %s\n' "$*" >&2; }
fail() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

# `bash scripts/NAME.sh --help` prints the comment at the head of that script.
case "${1-}" in
-h | --help)
    sed -n -e '1d' -e '/^#/!q' -e 's/^# \{0,1\}//p' "$0"
    exit 0
    ;;
esac

# A name on PATH is not enough: version managers leave commands that only say that a version is not installed.
new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1; }

find_python() {
    local name
    for name in python3.11 python3 python3.13 python3.12 python3.10 python; do
        if new_enough "$name"; then
            printf '%s\n' "$name"
            return
        fi
    done
    fail "no Python >= 3.10 found on PATH (looked for python3.11, python3 and others); install one and start again"
}

make_environment() { # FOLDER
    local base
    base="$(find_python)" || exit 1
    say "making a virtual environment in $1 with $base ($("$base" -c 'import platform; print(platform.python_version())'))"
    # The mark tells the next call that this attempt was interrupted; --clear, that nothing is built upon such a one.
    { mkdir -p -- "$(dirname -- "$1")" && : >"$1.incomplete"; } ||
        fail "cannot write $1; name another place for the environment with EMMA_VENV"
    "$base" -m venv --clear "$1" >&2 </dev/null ||
        fail "\"$base -m venv $1\" failed (on Debian and Ubuntu its module is a package: apt install python3-venv)"
    rm -- "$1.incomplete"
}

choose_environment() { # sets $environment
    environment="$EMMA_CHECKOUT/.venv"
    if [ -n "${EMMA_VENV-}" ]; then
        case "$EMMA_VENV" in /*) environment="$EMMA_VENV" ;; *) environment="$PWD/$EMMA_VENV" ;; esac
        if [ ! -e "$environment" ] || [ -e "$environment.incomplete" ]; then
            make_environment "$environment"
        elif [ ! -x "$environment/bin/python" ]; then
            fail "EMMA_VENV=$EMMA_VENV exists but has no bin/python; name an environment or a path that does not exist yet"
        fi
    elif [ -n "${VIRTUAL_ENV-}" ]; then
        environment="$VIRTUAL_ENV"
    elif [ -n "${CONDA_PREFIX-}" ] && [ "${CONDA_DEFAULT_ENV-}" != base ]; then
        environment="$CONDA_PREFIX"
    elif [ ! -x "$environment/bin/python" ] || [ -e "$environment.incomplete" ]; then
        make_environment "$environment"
    fi
    new_enough "$environment/bin/python" ||
        fail "$environment/bin/python is missing or older than Python 3.10; deactivate it, or name another with EMMA_VENV"
}

# Cores that this machine gives us; torch does not see a container's quota, and many threads on few cores spend their time
# waiting for each other.
usable_cores() {
    local cores physical quota period
    cores="$(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)"
    physical="$(lscpu -p=CORE,SOCKET 2>/dev/null | grep -v '^#' | sort -u | wc -l)"
    if [ "$physical" -gt 0 ] && [ "$physical" -lt "$cores" ]; then cores="$physical"; fi
    if { read -r quota period </sys/fs/cgroup/cpu.max; } 2>/dev/null && [ "$quota" != max ]; then
        quota=$(((quota + period - 1) / period))
        if [ "$quota" -lt "$cores" ]; then cores="$quota"; fi
    fi
    printf '%s\n' "$cores"
}

# One thread a core, shared among the processes of this machine, at most 8 (small models gain nothing from more).
set_threads() { # PROCESSES; what the user has set stays
    local threads
    if [ -n "$threads_given" ]; then return; fi
    threads=$(($(usable_cores) / $1))
    if [ "$threads" -lt 1 ]; then threads=1; fi
    if [ "$threads" -gt 8 ]; then threads=8; fi
    export OMP_NUM_THREADS="$threads"
}

choose_environment
PYTHON="$environment/bin/python"
export EMMA_VENV="$environment" # scripts that this one starts use the same
export PATH="$environment/bin:$PATH"
threads_given="${OMP_NUM_THREADS-}"
set_threads 1
if [ "${EMMA_NO_INSTALL-}" != 1 ]; then
    "$PYTHON" "$EMMA_CHECKOUT/scripts/_install.py" </dev/null || exit 1
fi
