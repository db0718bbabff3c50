"""The training command from outside: kill -9, SIGTERM, two ranks under torchrun, and errors in one line."""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest
from train_runs import log_lines, one_step

from emma.paths import project_root
from emma.train.saving import checkpoints

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(project_root())}
LIMIT = 280  # seconds; a start imports for ten, on a busy machine for minutes


def start(*arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "emma.train", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=ENVIRONMENT,
    )


def wait_until(condition, process):
    deadline = time.monotonic() + LIMIT
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.timeout(2 * LIMIT)
def test_kill_9_then_sigterm_then_nothing_is_lost_or_doubled(assets, tmp_path):
    settings = ["pretrain.max_steps=100000", "pretrain.save_every=3", "pretrain.log_every=1", f"output={tmp_path}"]
    command = [assets / "recipe.yaml", "--stage", "pretrain", *settings]
    folder = tmp_path / "pretrain"
    first = start(*command)
    wait_until(lambda: max(checkpoints(folder), default=0) >= 3, first)
    first.kill()
    first.communicate()
    killed_at = max(checkpoints(folder))
    second = start(*command)
    wait_until(lambda: max(checkpoints(folder), default=0) > killed_at, second)
    second.send_signal(signal.SIGTERM)
    output = second.communicate(timeout=LIMIT)[0]
    assert second.returncode == 128 + signal.SIGTERM, output
    last = max(checkpoints(folder))
    assert f"stopped by SIGTERM; saved {folder / f'checkpoint-{last}'}" in output
    assert "Go on with: python -m emma.train" in output
    assert "Traceback" not in output
    assert f"goes on from {folder / f'checkpoint-{killed_at}'}" in output
    assert [line["step"] for line in log_lines(folder)] == list(range(1, last + 1))


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.mark.timeout(2 * LIMIT)
def test_two_ranks_give_the_losses_of_one(finished, assets, tmp_path):
    _, pretrained, _ = finished
    settings = ["finetune.batch_size=4", "finetune.warmup=0", "finetune.micro_batch=1", "finetune.log_every=1"]
    alone = one_step(assets, tmp_path / "one", *settings, "finetune.max_steps=6", pretrained=pretrained / "model")
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(free_port())]
    command = ["-m", "emma.train", assets / "recipe.yaml", "--stage", "finetune", *settings]
    overrides = ["finetune.max_steps=6", f"finetune.init={pretrained / 'model'}", f"output={tmp_path / 'two'}"]
    done = subprocess.run(
        [sys.executable, *launcher, *map(str, command), *overrides],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        timeout=2 * LIMIT,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "effective batch: 4 = 1 per process x 2 process(es) x 2 accumulation" in done.stdout
    ours, theirs = log_lines(tmp_path / "two" / "finetune"), log_lines(alone)
    assert [line["step"] for line in ours] == [1, 2, 3, 4, 5, 6]
    for one, two in zip(theirs, ours, strict=True):
        # Sums are taken in another order, and AdamW's division magnifies that from step to step.
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-3)
        assert two["supervised_tokens"] == one["supervised_tokens"]
        assert two["samples"] == one["samples"]
        assert two["tokens"] == one["tokens"]
        assert two["model_flops"] == one["model_flops"]
        assert two["tokens_per_second_per_device"] == pytest.approx(two["tokens_per_second"] / 2, rel=1e-3)
        assert 0 < two["memory_gib_min"] <= two["memory_gib"]
    assert ours[0]["loss"] == pytest.approx(theirs[0]["loss"], rel=1e-5)
    assert ours[0]["grad_norm"] == pytest.approx(theirs[0]["grad_norm"], rel=1e-4)


def test_errors_are_one_line(assets, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "emma.train", assets / "recipe.yaml", "--stage", "pretrain", "pretrain.lr=3"],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        timeout=LIMIT,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: command line: unknown key pretrain.lr")
    assert done.stderr.count("\n") == 1
