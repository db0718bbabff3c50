"""How pretrain.sh and finetune.sh start processes: on one node or several, under Slurm; what signals do to them."""

import os
import signal
import time
from pathlib import Path

import pytest
from script_machine import Machine, write_program

# Stands for torchrun: two training processes in sessions of their own, which save on a signal and exit with its code.
TORCHRUN = """
import os, subprocess, sys
training = [sys.executable, os.environ["FAKE_TRAINING"]]
workers = [subprocess.Popen([*training, name], start_new_session=True) for name in "01"]
sys.exit(max(worker.wait() for worker in workers) != 0)
"""
TRAINING = """
import os, signal, sys, time
name = sys.argv[1] if len(sys.argv) > 1 else "alone"
def save(number, frame):
    time.sleep(0.3)
    print(f"{name} saved on {signal.Signals(number).name}", flush=True)
    sys.exit(128 + number)
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
    signal.signal(number, save)
open(os.path.join(os.environ["HOME"], f"ready-{name}"), "w").close()
time.sleep(60)
"""
# Stands for srun: runs the command once for each node, with the variables of a step.
SRUN = """#!/bin/sh
printf 'srun %s\\n' "$*" >> "$FAKE_LOG"
while [ "$1" != bash ]; do shift; done
for node in 0 1; do
    SLURM_STEP_ID=0 SLURM_STEP_NUM_NODES=2 SLURM_STEP_NUM_TASKS=2 SLURM_STEP_NODELIST='gpu[07-08]' \\
        SLURM_NODEID=$node "$@" || exit $?
done
"""
SCONTROL = """#!/bin/sh
if [ "$1 $2" = "show hostnames" ]; then printf 'gpu07\\ngpu08\\n'; else echo "scontrol $*" >> "$FAKE_LOG"; fi
"""
ALLOCATION = {"SLURM_JOB_ID": "4711", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "gpu[07-08]"}


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    machine = Machine(tmp_path)
    machine.add_python("python3.11")
    write_program(machine.bin / "srun", SRUN)
    write_program(machine.bin / "scontrol", SCONTROL)
    machine.variables["OMP_NUM_THREADS"] = "3"
    return machine


def arguments(call: str) -> str:
    """A line of the log as plain words, without the interpreter."""
    return call.split("python<", 1)[1].rstrip(">").replace("><", " ")


TRAIN = "-m emma.train a.yaml --stage"


@pytest.mark.parametrize(("gpus", "given"), [("4", {}), ("0", {"NPROC_PER_NODE": "4"}), ("8", {"NPROC_PER_NODE": "4"})])
def test_several_processes_of_one_node_go_through_torchrun(machine, gpus, given):
    machine.variables |= {"FAKE_GPUS": gpus, **given}
    machine.run("scripts/pretrain.sh", "a.yaml", "name=two words", "--resume", "never")
    expected = (
        f"-m torch.distributed.run --standalone --nproc-per-node 4 {TRAIN} pretrain name=two words --resume never"
    )
    assert arguments(machine.last) == expected


def test_one_process_needs_no_launcher(machine):
    for variables in ({"FAKE_GPUS": "1"}, {"FAKE_GPUS": "4", "NPROC_PER_NODE": "1"}):
        machine.variables |= variables
        machine.run("scripts/finetune.sh", "a.yaml")
        assert arguments(machine.last) == f"{TRAIN} finetune"


def test_a_process_that_a_launcher_started_starts_no_others(machine):
    machine.variables |= {"FAKE_GPUS": "4", "RANK": "1", "WORLD_SIZE": "4", **ALLOCATION}
    machine.run("scripts/pretrain.sh", "a.yaml")
    assert arguments(machine.last) == f"{TRAIN} pretrain"


def test_several_nodes_by_hand(machine):
    machine.variables |= {"FAKE_GPUS": "8", "NNODES": "2", "MASTER_ADDR": "10.0.0.1"}
    torchrun = "-m torch.distributed.run --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint 10.0.0.1"
    machine.run("scripts/pretrain.sh", "a.yaml")
    assert arguments(machine.last) == f"{torchrun}:29500 --rdzv-id emma {TRAIN} pretrain"
    for rank, host in (("0", 1), ("1", 0)):
        machine.variables |= {"NODE_RANK": rank, "MASTER_PORT": "1234"}
        machine.run("scripts/pretrain.sh", "a.yaml")
        assert arguments(machine.last) == f"{torchrun}:1234 --rdzv-id emma --rdzv-conf is_host={host} {TRAIN} pretrain"


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"NNODES": "2"}, "NNODES=2, but MASTER_ADDR is not set"),
        ({"NNODES": "two"}, "NNODES=two is not a number of at least 1"),
        ({"NPROC_PER_NODE": "0"}, "NPROC_PER_NODE=0 is not a number of at least 1"),
        (
            {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_NODES": "1", "SLURM_STEP_NUM_TASKS": "8"},
            "srun started 8 tasks on 1 node(s); start one per node (srun --ntasks-per-node 1 ...)",
        ),
    ],
)
def test_what_cannot_be_started_is_one_line(machine, variables, message):
    machine.variables |= variables
    done = machine.run("scripts/pretrain.sh", "a.yaml", ok=False)
    assert done.stderr.splitlines()[-1].startswith(f"error: {message}")
    assert not any("emma.train" in call for call in machine.calls)


def test_a_slurm_allocation_gets_one_torchrun_per_node(machine):
    machine.variables |= {"FAKE_GPUS": "8", "SLURM_CPUS_PER_TASK": "32", **ALLOCATION}
    machine.run("scripts/finetune.sh", "a.yaml", "name=x")
    srun = next(call for call in machine.calls if call.startswith("srun"))
    assert srun == (
        "srun --nodes 2 --ntasks 2 --ntasks-per-node 1 --export=ALL --kill-on-bad-exit=1 --cpus-per-task 32 "
        f"bash {machine.checkout}/scripts/finetune.sh a.yaml name=x"
    )
    nodes = [arguments(call) for call in machine.calls if "torch.distributed" in call]
    torchrun = "-m torch.distributed.run --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d"
    assert nodes == [
        f"{torchrun} --rdzv-endpoint gpu07:14711 --rdzv-id 4711 --rdzv-conf is_host={host} {TRAIN} finetune name=x"
        for host in (1, 0)
    ]
    assert sum("_install.py" in call for call in machine.calls) == 1, "only the first node installs"


def test_shells_of_slurm_are_no_steps(machine):
    machine.variables |= {"SLURM_STEP_ID": "4294967290", "SLURM_STEP_NUM_NODES": "1", **ALLOCATION}
    machine.run("scripts/pretrain.sh", "a.yaml")
    assert any(call.startswith("srun") for call in machine.calls)
    machine.variables["SLURM_STEP_ID"] = "3"  # srun --nodes 1 within the allocation
    machine.run("scripts/pretrain.sh", "a.yaml")
    assert arguments(machine.last) == f"{TRAIN} pretrain"


@pytest.mark.parametrize("script", ["scripts/pretrain.sh", "scripts/slurm/train.sbatch"])
def test_a_dry_run_prints_the_commands_only(machine, script):
    machine.variables |= {
        "FAKE_GPUS": "8",
        "EMMA_DRY_RUN": "1",
        "SLURM_SUBMIT_DIR": str(machine.checkout),
        **ALLOCATION,
    }
    stage = ["pretrain"] if script.endswith("sbatch") else []
    done = machine.run(script, *stage, "a.yaml", "name=two words")
    checkout = str(machine.checkout).replace(" ", "\\ ")
    assert done.stdout.splitlines() == [
        "OMP_NUM_THREADS=3 srun --nodes 2 --ntasks 2 --ntasks-per-node 1 --export=ALL --kill-on-bad-exit=1 "
        f"bash {checkout}/scripts/pretrain.sh a.yaml name=two\\ words",
        f"OMP_NUM_THREADS=3 {checkout}/.venv/bin/python -m torch.distributed.run --nnodes 2 --nproc-per-node 8 "
        "--rdzv-backend c10d --rdzv-endpoint gpu07:14711 --rdzv-id 4711 --rdzv-conf is_host=1 "
        f"{TRAIN} pretrain name=two\\ words",
    ]
    assert not any("emma.train" in call or call.startswith("scontrol") for call in machine.calls)


def test_processes_of_a_node_share_its_cores(machine):
    machine.variables |= {"EMMA_DRY_RUN": "1", "NPROC_PER_NODE": "4096"}
    del machine.variables["OMP_NUM_THREADS"]
    assert machine.run("scripts/pretrain.sh", "a.yaml").stdout.startswith("OMP_NUM_THREADS=1 ")


def wait_for(*files: Path) -> None:
    deadline = time.monotonic() + 30
    while not all(file.exists() for file in files):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def with_training(machine: Machine, processes: str) -> list[Path]:
    """Let fake processes run; the files that say that they do."""
    for name, text in (("FAKE_TORCHRUN", TORCHRUN), ("FAKE_TRAINING", TRAINING)):
        file = machine.elsewhere / f"{name}.py"
        file.write_text(text)
        machine.variables[name] = str(file)
    machine.variables["NPROC_PER_NODE"] = processes
    return [machine.elsewhere / f"ready-{name}" for name in (["alone"] if processes == "1" else ["0", "1"])]


@pytest.mark.parametrize("pgrep", [True, False])
@pytest.mark.parametrize(("sent", "arrives"), [("USR1", "USR1"), ("TERM", "TERM"), ("INT", "INT"), ("HUP", "TERM")])
def test_signals_go_past_torchrun_to_the_training(machine, sent, arrives, pgrep):
    if pgrep:
        program = next((Path(p, "pgrep") for p in os.get_exec_path() if Path(p, "pgrep").exists()), None)
        if program is None:
            pytest.skip("no pgrep on this machine")
        (machine.bin / "pgrep").symlink_to(program)
    elif not Path(f"/proc/self/task/{os.getpid()}/children").exists():
        pytest.skip("this kernel does not list children")
    ready = with_training(machine, "2")
    process = machine.start("scripts/pretrain.sh", "a.yaml")
    wait_for(*ready)
    # As a terminal does with Ctrl-C: to all of the process group, in which torchrun must not be.
    (os.killpg if sent == "INT" else os.kill)(process.pid, getattr(signal, f"SIG{sent}"))
    output = process.communicate(timeout=30)[0]
    assert process.returncode == 128 + getattr(signal, f"SIG{sent}"), output
    assert sorted(line for line in output.splitlines() if "saved" in line) == [
        f"{name} saved on SIG{arrives}" for name in ("0", "1")
    ]


def test_a_signal_ends_a_torchrun_that_has_no_processes_yet(machine):
    with_training(machine, "2")
    ready = machine.elsewhere / "starting"
    starting = f"import time; open({str(ready)!r}, 'w').close(); time.sleep(60)"
    Path(machine.variables["FAKE_TORCHRUN"]).write_text(starting)
    process = machine.start("scripts/pretrain.sh", "a.yaml")
    wait_for(ready)
    process.send_signal(signal.SIGUSR1)
    output = process.communicate(timeout=30)[0]
    assert process.returncode == 128 + signal.SIGUSR1, output


@pytest.mark.parametrize("sent", ["USR1", "TERM"])
@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_preempted_job_saves_and_goes_back_into_the_queue(machine, sent, processes):
    ready = with_training(machine, processes)
    machine.variables |= {"SLURM_SUBMIT_DIR": str(machine.checkout), "SLURM_JOB_ID": "4711"}
    process = machine.start("scripts/slurm/train.sbatch", "pretrain", "a.yaml")
    wait_for(*ready)
    os.kill(process.pid, getattr(signal, f"SIG{sent}"))
    output = process.communicate(timeout=30)[0]
    assert process.returncode == 128 + signal.SIGUSR1, output
    assert output.count("saved on SIGUSR1") == int(processes)
    assert machine.last == "scontrol requeue 4711"


@pytest.mark.parametrize("code", [0, 1])
def test_a_job_that_ends_by_itself_is_not_requeued(machine, code):
    with_training(machine, "1")
    Path(machine.variables["FAKE_TRAINING"]).write_text(f"raise SystemExit({code})")
    machine.variables |= {"SLURM_SUBMIT_DIR": str(machine.checkout), "SLURM_JOB_ID": "4711"}
    machine.run("scripts/slurm/train.sbatch", "pretrain", "a.yaml", ok=code == 0)
    assert not any(call.startswith("scontrol") for call in machine.calls)


def test_a_job_names_what_is_wrong_with_its_submission(machine):
    machine.variables["SLURM_SUBMIT_DIR"] = str(machine.elsewhere)
    done = machine.run("scripts/slurm/train.sbatch", "pretrain", ok=False)
    assert done.stderr == f"error: {machine.elsewhere} has no scripts/pretrain.sh; submit from the checkout of EMMA\n"
    assert (
        "the stage tune must be pretrain or finetune"
        in machine.run("scripts/slurm/train.sbatch", "tune", ok=False).stderr
    )
