# shellcheck shell=bash
# Sourced by _train.sh: starts one stage in as many processes as there are GPUs, and passes signals on to them.
#
#   one process            python
#   several on one node    torchrun --standalone
#   several nodes          torchrun with a c10d rendezvous: in a Slurm allocation (through srun, one task per node), or
#                          with NNODES and MASTER_ADDR set on each node
# NPROC_PER_NODE sets the processes of a node; MASTER_PORT, NODE_RANK as torchrun knows them; NNODES goes before Slurm.
# EMMA_DRY_RUN=1 prints the command instead of running it.

count_gpus() {
    "$PYTHON" -c 'import torch; print(torch.cuda.device_count())' 2>/dev/null || echo 0
}

launch() { # GPUS STAGE CONFIG [argument ...]
    local gpus="$1" nodes="${NNODES:-1}" processes
    shift
    if [ -n "${RANK-}" ] && [ -n "${WORLD_SIZE-}" ]; then # torchrun, accelerate or deepspeed has started this process
        run_here "$PYTHON" -m emma.train "$2" --stage "$1" "${@:3}"
    fi
    processes="${NPROC_PER_NODE:-$((gpus > 0 ? gpus : 1))}"
    check_number NPROC_PER_NODE "$processes"
    check_number NNODES "$nodes"
    if [ -z "${NNODES-}" ]; then
        if in_slurm_step; then
            nodes="${SLURM_STEP_NUM_NODES:-1}"
            if [ "${SLURM_STEP_NUM_TASKS:-$nodes}" -ne "$nodes" ]; then
                fail "srun started $SLURM_STEP_NUM_TASKS tasks on $nodes node(s); start one per node" \
                    "(srun --ntasks-per-node 1 ...): each starts the processes of its node itself"
            fi
        elif [ "${SLURM_JOB_NUM_NODES:-1}" -gt 1 ]; then
            nodes="$SLURM_JOB_NUM_NODES"
            launch_through_srun "$nodes" "$@" # returns in a dry run only, which prints the command of a node too
        fi
    fi
    launch_on_this_node "$nodes" "$processes" "$@"
}

# Slurm counts the shells of sbatch and salloc as steps too, with numbers from 4294967290 on.
in_slurm_step() { [ -n "${SLURM_STEP_ID-}" ] && [ "$SLURM_STEP_ID" -lt 4294967290 ]; }

check_number() { # NAME VALUE
    [[ "$2" =~ ^[1-9][0-9]*$ ]] || fail "$1=$2 is not a number of at least 1"
}

launch_through_srun() { # NODES STAGE CONFIG [argument ...]
    local nodes="$1" command
    shift
    # A node that fails ends the others, which would wait for it in vain.
    command=(srun --nodes "$nodes" --ntasks "$nodes" --ntasks-per-node 1 --export=ALL --kill-on-bad-exit=1)
    # A step does not inherit the job's --cpus-per-task by itself.
    if [ -n "${SLURM_CPUS_PER_TASK-}" ]; then command+=(--cpus-per-task "$SLURM_CPUS_PER_TASK"); fi
    command+=(bash "$EMMA_CHECKOUT/scripts/$1.sh" "${@:2}")
    if [ -z "$threads_given" ]; then unset OMP_NUM_THREADS; fi # each node counts its own cores
    export EMMA_NO_INSTALL=1                                  # done here, and the nodes share it
    if [ "${EMMA_DRY_RUN-}" = 1 ]; then
        announce "${command[@]}"
        SLURM_NODEID=0
        return
    fi
    run_and_pass_signals_on "${command[@]}"
}

launch_on_this_node() { # NODES PROCESSES STAGE CONFIG [argument ...]
    local nodes="$1" processes="$2" command
    shift 2
    set_threads "$processes"
    if [ "$nodes" -eq 1 ] && [ "$processes" -eq 1 ]; then
        run_here "$PYTHON" -m emma.train "$2" --stage "$1" "${@:3}"
    fi
    command=("$PYTHON" -m torch.distributed.run)
    if [ "$nodes" -eq 1 ]; then
        command+=(--standalone --nproc-per-node "$processes")
    else
        find_rendezvous
        command+=(--nnodes "$nodes" --nproc-per-node "$processes" --rdzv-backend c10d)
        command+=(--rdzv-endpoint "$rendezvous" --rdzv-id "${SLURM_JOB_ID:-emma}")
        # Said outright where it is known: torchrun would compare host names, which differ on some clusters.
        if [ -n "$node_rank" ]; then command+=(--rdzv-conf "is_host=$((node_rank == 0))"); fi
    fi
    run_and_pass_signals_on "${command[@]}" -m emma.train "$2" --stage "$1" "${@:3}"
}

find_rendezvous() { # sets $rendezvous and, if it is known, $node_rank
    local address="${MASTER_ADDR-}" list="${SLURM_STEP_NODELIST:-${SLURM_JOB_NODELIST-}}" id="${SLURM_JOB_ID:-19500}"
    node_rank="${NODE_RANK-}"
    if [ -z "$address" ] && [ -n "$list" ]; then
        address="$(scontrol show hostnames "$list")" || fail "scontrol show hostnames $list failed; set MASTER_ADDR"
        address="${address%%$'\n'*}"
        node_rank="${SLURM_NODEID-}"
    fi
    [ -n "$address" ] || fail "NNODES=$nodes, but MASTER_ADDR is not set; set it to the address of one of the nodes"
    rendezvous="$address:${MASTER_PORT:-$((10000 + id % 20000))}" # below the ports that the system hands out
}

announce() { # COMMAND ...
    local line
    line="$(printf '%q ' "$@")"
    line="${OMP_NUM_THREADS:+OMP_NUM_THREADS=$OMP_NUM_THREADS }${line% }"
    if [ "${EMMA_DRY_RUN-}" = 1 ]; then printf '%s\n' "$line"; else say "$line"; fi
}

run_here() { # COMMAND ...
    announce "$@"
    if [ "${EMMA_DRY_RUN-}" = 1 ]; then exit 0; fi
    exec "$@"
}

# torchrun dies of USR1, and gives its processes 30 s after TERM or Ctrl-C, too little to save a large model. So it runs in
# a process group of its own, ignores USR1, and signals go past it to the training processes, which save and exit.
run_and_pass_signals_on() { # COMMAND ...
    local signal status=0 interrupted=1
    announce "$@"
    if [ "${EMMA_DRY_RUN-}" = 1 ]; then exit 0; fi
    program="$1" received=""
    set -m
    (
        trap '' USR1
        exec "$@" </dev/null
    ) &
    child=$!
    set +m
    for signal in HUP INT TERM USR1; do
        # shellcheck disable=SC2064 # this signal's name, not the last one's
        trap "pass_on $signal; received=$signal interrupted=1" "$signal"
    done
    while [ "$interrupted" = 1 ]; do # a signal ends the waiting, not the child
        interrupted=0 status=0
        wait "$child" || status=$?
    done
    if [ "$status" -ne 0 ] && [ -n "$received" ]; then status=$((128 + $(kill -l "$received"))); fi
    exit "$status"
}

pass_on() { # SIGNAL
    local signal="$1" processes
    case "$program:$signal:$received" in
    srun:INT:INT) kill -TERM "$child" && return ;; # a second Ctrl-C ends the step at once
    srun:*) kill -USR1 "$child" && return ;;       # srun forwards this one to its tasks; TERM would end them
    *:HUP:*) signal=TERM ;;
    esac
    processes="$(pgrep -P "$child" 2>/dev/null || cat "/proc/$child/task/$child/children" 2>/dev/null)"
    if [ -z "$processes" ]; then # torchrun is still starting, and there is nothing to save
        processes="$child" signal=TERM
    fi
    # shellcheck disable=SC2086 # several numbers
    kill -s "$signal" $processes 2>/dev/null || true
}
