"""This process among the others of a run: what the launcher says, one process by itself, errors of several."""

import json
import os
import signal
import socket
import sys
import time
import traceback
from pathlib import Path

from emma.errors import EmmaError, describe_os_error
from emma.train.recipe import StageRecipe

TORCHRUN = "torchrun --nproc-per-node N -m emma.train ..."
# Task numbers of srun and mpirun; each task would train a copy of its own.
TASKS = {"SLURM_STEP_NUM_TASKS": "srun", "OMPI_COMM_WORLD_SIZE": "mpirun", "PMI_SIZE": "mpirun"}
SLURM_SHELLS = 4294967290  # Slurm counts the shells of sbatch and salloc as steps, with numbers from here on
# What gloo and NCCL say when the process at the other end is gone.
PEER_GONE = (
    "connection closed by peer",
    "connection reset by peer",
    "broken pipe",
    "socket closed",
    "connection was likely closed",
    "remote process exited",
    "ncclremoteerror",
    "timed out waiting",
    "failed to recv",
    "recvvalue failed",
    "sendbytes failed",
)


def world_size() -> int:
    """Processes of the run, as the launcher says."""
    return int(os.environ.get("WORLD_SIZE", 1))


def rank() -> int:
    """Number of this process in the run."""
    return int(os.environ.get("RANK", 0))


def check_launcher(stage: StageRecipe, name: str, bf16: bool, cuda: bool) -> None:
    """Compare what a launcher has put into the environment with what the recipe asks for.

    accelerate's own DeepSpeed, FSDP and precision settings would act behind the recipe's back; the recipe decides.

    Raises:
        EmmaError: the environment promises several processes that are not there, or contradicts the recipe.
    """
    _check_processes()
    environment = os.environ
    own = "start with --config_file configs/accelerate/multi_gpu.yaml, which leaves this to the recipe"
    if "ACCELERATE_CONFIG_DS_FIELDS" in environment and stage.deepspeed is None:
        raise EmmaError(
            f"accelerate launch asks for DeepSpeed, but {name}.deepspeed of the recipe is null; set "
            f"{name}.deepspeed=configs/deepspeed/zero2.json, or {own}"
        )
    if "FSDP_VERSION" in environment and environment.get("ACCELERATE_USE_FSDP") == "true" and stage.fsdp is None:
        raise EmmaError(
            f"accelerate launch asks for FSDP, but {name}.fsdp of the recipe is null; set "
            f"{name}.fsdp=configs/fsdp2.json, or {own}"
        )
    for engine, wanted in (("DEEPSPEED", stage.deepspeed), ("FSDP", stage.fsdp)):
        if wanted is None:  # left behind by an earlier run in this process
            environment.pop(f"ACCELERATE_USE_{engine}", None)
    precision = environment.get("ACCELERATE_MIXED_PRECISION", "no")
    if precision not in ("no", "bf16" if bf16 else "no"):
        raise EmmaError(
            f"accelerate launch asks for mixed_precision {precision}, but {name}.precision of the recipe is "
            f"{stage.precision} and means {'bf16' if bf16 else 'fp32'} here; set mixed_precision: 'no' for accelerate"
        )
    if cuda and environment.get("ACCELERATE_USE_CPU", "false").lower() in ("true", "1", "yes"):
        raise EmmaError(
            "ACCELERATE_USE_CPU is set (accelerate launch --cpu), but this machine has a GPU; to train on the CPU, "
            "hide the GPU instead: CUDA_VISIBLE_DEVICES="
        )


def _check_processes() -> None:
    environment = os.environ
    if world_size() > 1:
        if missing := [key for key in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if key not in environment]:
            raise EmmaError(
                f"WORLD_SIZE is {world_size()}, but {', '.join(missing)} is not set, so this is not one of several "
                f"processes; unset WORLD_SIZE, or start with {TORCHRUN}"
            )
        return
    if "WORLD_SIZE" in environment:
        return
    if "ACCELERATE_MIXED_PRECISION" in environment and "MASTER_PORT" in environment:
        raise EmmaError(
            "accelerate launch was asked for several processes, but without a GPU it starts one; start with "
            f"{TORCHRUN}, or with --config_file configs/accelerate/multi_gpu.yaml"
        )
    if int(environment.get("SLURM_STEP_ID", 0)) >= SLURM_SHELLS:
        return
    for key, launcher in TASKS.items():
        if int(environment.get(key, 1)) > 1:
            raise EmmaError(
                f"{launcher} started {environment[key]} copies of this command ({key}), each of which would train by "
                "itself; start bash scripts/pretrain.sh or finetune.sh once, or once per node"
            )


def be_alone() -> None:
    """Say in the environment that this is a run of one process, as DeepSpeed and FSDP want even then."""
    if "RANK" in os.environ or "WORLD_SIZE" in os.environ:
        return
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    alone = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "LOCAL_WORLD_SIZE": 1, "MASTER_PORT": port}
    os.environ.update({key: str(value) for key, value in alone.items()} | {"MASTER_ADDR": "127.0.0.1"})


def die_of_usr1() -> None:
    """Until training begins there is nothing to save. The scripts start torchrun, and so this, with USR1 ignored."""
    signal.signal(signal.SIGUSR1, signal.SIG_DFL)


def peer_gone(error: BaseException | None) -> bool:
    """Whether an error says no more than that another process of the run has ended."""
    while error is not None:
        text = str(error).lower()
        network = type(error).__name__ in ("DistNetworkError", "DistBackendError", "DistStoreError")
        if isinstance(error, RuntimeError) and (network or any(words in text for words in PEER_GONE)):
            return True
        error = error.__cause__ or error.__context__
    return False


def report(error: Exception) -> int:
    """Print an error of one of several ranks so that the rank can be seen; returns the exit code.

    A rank that fails only because another one did gets one line, so that the cause is not buried.
    """
    mark, debug = f"[rank {rank()}]", os.environ.get("EMMA_DEBUG") == "1"
    if peer_gone(error) and not debug:
        text = "stopped because another rank has ended or does not answer; its message or the launcher's says why"
    elif isinstance(error, EmmaError | OSError) and not debug:
        text = describe_os_error(error) if isinstance(error, OSError) else str(error)
    else:
        lines = "".join(traceback.format_exception(error)).splitlines()
        print("\n".join(f"{mark} {line}" for line in lines), file=sys.stderr, flush=True)
        text = lines[-1]
    if not peer_gone(error):
        tell_torchrun(text)
    print(f"error: {mark} {text}", file=sys.stderr, flush=True)
    return 1


def tell_torchrun(text: str) -> None:
    """Leave a message for the table that torchrun prints when a process ends with an error."""
    if file := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        Path(file).write_text(json.dumps({"message": text, "timestamp": int(time.time())}), encoding="utf-8")


def leave_group() -> None:
    """End the process group, which torch would complain about at exit, when all ranks have come here."""
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        from accelerate.state import PartialState

        state = PartialState()
        state.wait_for_everyone()
        state.destroy_process_group()
