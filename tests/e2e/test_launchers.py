"""The training command under each launcher, started as users start it: stage 1 of a tiny recipe on two CPU ranks.

A start of two ranks is half a minute of imports on a small machine, so each test looks at several things.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from train_runs import log_lines, one_step

from emma.checkpoints.seal import is_complete
from emma.train.saving import checkpoints

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = Path(sys.executable).parent
LIMIT = 280
ZERO2 = f"pretrain.deepspeed={ROOT / 'configs/deepspeed/zero2.json'}"
SETTINGS = ["pretrain.max_steps=2", "pretrain.warmup=0", "pretrain.log_every=1"]
SCRIPT = ["bash", str(ROOT / "scripts/pretrain.sh")]


def begin(command: list[object], **variables: str) -> subprocess.Popen:
    fixed = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT), "EMMA_NO_INSTALL": "1"}
    fixed |= {"EMMA_VENV": str(PROGRAMS.parent), "PATH": f"{PROGRAMS}{os.pathsep}{os.environ['PATH']}"}
    return subprocess.Popen(
        [*map(str, command)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | fixed | variables,
        start_new_session=True,
    )


def end(process: subprocess.Popen) -> str:
    """Output of a process, which is stopped with all that it started when it takes too long."""
    try:
        return process.communicate(timeout=LIMIT)[0]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise


def free_port() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])


@pytest.fixture(scope="module")
def alone(assets, tmp_path_factory):
    """Log lines of the same two steps in one plain process."""
    return log_lines(one_step(assets, tmp_path_factory.mktemp("alone"), *SETTINGS, stage="pretrain"))


def assert_two_ranks_trained(output: str, folder: Path, alone: list[dict]) -> None:
    assert "2 per process x 2 process(es)" in output, output[-3000:]
    assert "destroy_process_group" not in output
    assert "is deprecated" not in output
    assert is_complete(folder / "model")
    ours = log_lines(folder)
    assert [line["step"] for line in ours] == [1, 2]
    for one, two in zip(alone, ours, strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-4)


@pytest.mark.timeout(3 * LIMIT)
def test_usr1_saves_under_torchrun_and_two_nodes_go_on(assets, tmp_path):
    settings = ["pretrain.max_steps=200", "pretrain.log_every=1", "pretrain.save_every=20", f"output={tmp_path}"]
    command, folder = [*SCRIPT, assets / "recipe.yaml", *settings], tmp_path / "pretrain"
    first = begin(command, NPROC_PER_NODE="2")
    deadline = time.monotonic() + LIMIT
    while max(checkpoints(folder), default=0) < 20:
        assert first.poll() is None, first.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    first.send_signal(signal.SIGUSR1)
    output = end(first)
    assert first.returncode == 128 + signal.SIGUSR1, output
    stopped_at = max(checkpoints(folder))
    assert f"stopped by SIGUSR1; saved {folder / f'checkpoint-{stopped_at}'}" in output
    assert "Go on with: python -m emma.train" in output

    nodes = {"NNODES": "2", "NPROC_PER_NODE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    both = [begin(command, **nodes, NODE_RANK=rank) for rank in ("0", "1")]
    outputs = [end(node) for node in both]
    assert [node.returncode for node in both] == [0, 0], outputs
    assert f"goes on from {folder / f'checkpoint-{stopped_at}'}" in "".join(outputs)
    assert [line["step"] for line in log_lines(folder)] == list(range(1, 201))
    assert is_complete(folder / "model")


def test_a_failing_rank_is_named_and_the_other_adds_one_line(assets, tmp_path):
    shutil.copytree(assets / "images", tmp_path / "images")
    (tmp_path / "images" / "7.png").unlink()
    overrides = [f"pretrain.data[0].images={tmp_path / 'images'}", f"output={tmp_path}"]
    process = begin([*SCRIPT, assets / "recipe.yaml", *SETTINGS, *overrides], NPROC_PER_NODE="2")
    output = end(process)
    assert process.returncode == 1
    errors = sorted(line.split("] ")[1] for line in output.splitlines() if line.startswith("error: [rank "))
    assert errors[0].startswith("sample 'c7' (record 7 of ")
    assert errors[1:] in (
        [],
        ["stopped because another rank has ended or does not answer; its message or the launcher's says why"],
    )
    table = output.split("Root Cause (first observed failure):")[1]
    assert "traceback : sample 'c7' (record 7 of " in table
    assert output.count("Traceback") == 1, "torchrun's own, not the ranks'"


def train(launcher: list[object], assets: Path, output: Path, *overrides: str) -> str:
    command = ["emma.train", assets / "recipe.yaml", "--stage", "pretrain", *SETTINGS, f"output={output}", *overrides]
    process = begin([*launcher, *command])
    said = end(process)
    assert process.returncode == 0, said[-5000:]
    return said


def test_accelerate_launch_with_deepspeed(assets, tmp_path, alone):
    config = ROOT / "configs/accelerate/deepspeed.yaml"
    launcher = [PROGRAMS / "accelerate", "launch", "--config_file", config, "--num_processes", 2, "-m"]
    said = train(launcher, assets, tmp_path, ZERO2)
    assert_two_ranks_trained(said, tmp_path / "pretrain", alone)


def test_the_deepspeed_launcher(assets, tmp_path, alone):
    # Through python: its own first line cannot name an interpreter whose path has a space.
    launcher = [sys.executable, PROGRAMS / "deepspeed", "--num_gpus", 2, "--master_port", free_port(), "--module"]
    said = train(launcher, assets, tmp_path, ZERO2)
    assert_two_ranks_trained(said, tmp_path / "pretrain", alone)


@pytest.mark.slow
def test_accelerate_launch_leaves_the_engine_to_the_recipe(assets, tmp_path, alone):
    config = ROOT / "configs/accelerate/multi_gpu.yaml"
    launcher = [PROGRAMS / "accelerate", "launch", "--config_file", config, "--num_processes", 2, "-m"]
    said = train(launcher, assets, tmp_path / "ddp")
    assert_two_ranks_trained(said, tmp_path / "ddp" / "pretrain", alone)
    said = train(launcher, assets, tmp_path / "zero2", ZERO2)
    assert_two_ranks_trained(said, tmp_path / "zero2" / "pretrain", alone)


@pytest.mark.slow
def test_deepspeed_in_one_process_without_a_launcher(assets, tmp_path, alone):
    said = train([sys.executable, "-m"], assets, tmp_path, ZERO2)
    assert "4 per process x 1 process(es)" in said
    for one, two in zip(alone, log_lines(tmp_path / "pretrain"), strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-4)


@pytest.mark.slow
def test_launches_that_would_be_something_else_stop(assets, tmp_path):
    def stopped(launcher: list[object], *overrides: str) -> str:
        command = ["emma.train", assets / "recipe.yaml", "--stage", "pretrain", f"output={tmp_path}", *overrides]
        process = begin([*launcher, *command])
        said = end(process)
        assert process.returncode != 0, said
        assert not tmp_path.joinpath("pretrain").exists()
        return said

    accelerate = [PROGRAMS / "accelerate", "launch", "--num_processes", 2]
    assert "but without a GPU it starts one" in stopped([*accelerate, "--cpu", "-m"], ZERO2)
    configs = ROOT / "configs"
    said = stopped([*accelerate, "--config_file", configs / "accelerate/deepspeed.yaml", "-m"])
    assert "accelerate launch asks for DeepSpeed, but pretrain.deepspeed of the recipe is null" in said
    said = stopped([*accelerate, "--config_file", configs / "accelerate/fsdp2.yaml", "-m"])
    assert "accelerate launch asks for FSDP, but pretrain.fsdp of the recipe is null" in said
    assert "there is no GPU" in stopped([sys.executable, "-m"], f"pretrain.fsdp={configs / 'fsdp2.json'}")
