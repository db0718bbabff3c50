"""Runs of several ranks against the run of one process: same samples, same losses, same model, whatever the engine."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from train_runs import log_lines, weights

from emma.train import load_recipe, run

RANKS = Path(__file__).with_name("ranks.py")
CONFIGS = Path(__file__).parents[2] / "configs" / "deepspeed"
STEPS = 20
# One step sees 8 samples: 10 with an image and 5 without make batches of both kinds, and masked repeats.
SETTINGS = [f"{{stage}}.{key}" for key in (f"max_steps={STEPS}", "batch_size=8", "log_every=1", "save_every=100")]


def deepspeed_file(folder: Path, name: str) -> Path:
    """The shipped file, but with every parameter partitioned: tiny ones would all stay whole otherwise."""
    config = json.loads((CONFIGS / f"{name}.json").read_text())
    if name == "zero3":
        config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    file = folder / f"{name}.json"
    file.write_text(json.dumps(config))
    return file


def torchrun(jobs: list[dict], folder: Path, ranks: int, seconds: int = 280) -> list[list[dict]]:
    """Run jobs on so many ranks; outcomes per job and rank."""
    file = folder / "jobs.json"
    file.write_text(json.dumps(jobs))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(RANKS.parents[2])}
    done = subprocess.run(
        [*command, str(RANKS), str(file)], capture_output=True, text=True, timeout=seconds, env=environment, check=False
    )
    (folder / "output.txt").write_text(done.stdout + done.stderr)
    outcomes = [
        [json.loads(line) for line in (folder / f"jobs-rank{rank}.jsonl").read_text().splitlines()]
        for rank in range(ranks)
    ]
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return [list(of_job) for of_job in zip(*outcomes, strict=True)]


def settings(stage: str, output: Path, *more: str) -> list[str]:
    return [f"output={output}", *(text.format(stage=stage) for text in SETTINGS), *more]


@pytest.fixture(scope="module")
def alone(assets, tmp_path_factory):
    """Both stages in one process."""
    output = tmp_path_factory.mktemp("alone")
    for stage in ("pretrain", "finetune"):
        run(
            load_recipe(assets / "recipe.yaml", settings(stage, output, f"finetune.init={output}/pretrain/model")),
            stage,
        )
    return output


MODES = {
    "ddp": [],
    "zero2": ["{stage}.deepspeed={folder}/zero2.json"],
    "zero3": ["{stage}.deepspeed={folder}/zero3.json"],
    "zero3-checkpointing": ["{stage}.deepspeed={folder}/zero3.json", "{stage}.gradient_checkpointing=true"],
}


@pytest.fixture(scope="module")
def together(assets, alone, tmp_path_factory):
    """Both stages on two ranks with every engine; output folder by mode."""
    folder = tmp_path_factory.mktemp("together")
    for name in ("zero2", "zero3"):
        deepspeed_file(folder, name)
    jobs = []
    for mode, overrides in MODES.items():
        for stage in ("pretrain", "finetune"):
            more = [text.format(stage=stage, folder=folder) for text in overrides]
            start = [f"finetune.init={alone}/pretrain/model"]
            jobs.append(
                {
                    "recipe": str(assets / "recipe.yaml"),
                    "stage": stage,
                    "overrides": settings(stage, folder / mode, f"{stage}.micro_batch=2", *more, *start),
                }
            )
    torchrun(jobs, folder, 2)
    return folder


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
@pytest.mark.parametrize("mode", MODES)
def test_two_ranks_have_the_losses_and_the_model_of_one_process(alone, together, mode, stage):
    reference, ours = alone / stage, together / mode / stage
    for one, other in zip(log_lines(reference), log_lines(ours), strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-4), one["step"]
        assert other["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-3), one["step"]
        assert other["supervised_tokens"] == one["supervised_tokens"]
    expected, found = weights(reference / "model"), weights(ours / "model")
    assert expected.keys() == found.keys()
    assert max(float((expected[name] - found[name]).abs().max()) for name in expected) < 1e-3
