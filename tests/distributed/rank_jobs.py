"""Starts `ranks.py` on several ranks and reads back what came of its jobs."""

import json
import os
import subprocess
import sys
from pathlib import Path

RANKS = Path(__file__).with_name("ranks.py")
CONFIGS = Path(__file__).parents[2] / "configs" / "deepspeed"


def write_deepspeed_files(folder: Path) -> None:
    """The shipped files, but with every parameter partitioned: tiny ones would all stay whole otherwise."""
    for name in ("zero2", "zero3"):
        config = json.loads((CONFIGS / f"{name}.json").read_text())
        if name == "zero3":
            config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
        (folder / f"{name}.json").write_text(json.dumps(config))


def torchrun(jobs: list[dict], folder: Path, ranks: int, seconds: int) -> tuple[int, str, list[list[dict]]]:
    """Run jobs on so many ranks within a time limit; exit code, output, and outcomes by job and rank."""
    for old in folder.glob("jobs*"):
        old.unlink()
    file = folder / "jobs.json"
    file.write_text(json.dumps(jobs))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(RANKS.parents[2])}
    done = subprocess.run(
        [*command, str(RANKS), str(file)], capture_output=True, text=True, timeout=seconds, env=environment, check=False
    )
    output = done.stdout + done.stderr
    (folder / f"output-{ranks}.txt").write_text(output)
    files = [folder / f"jobs-rank{rank}.jsonl" for rank in range(ranks)]
    outcomes = [[json.loads(line) for line in f.read_text().splitlines()] if f.is_file() else [] for f in files]
    return done.returncode, output, [list(of_job) for of_job in zip(*outcomes, strict=True)]
