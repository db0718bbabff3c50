"""A quickstart killed in every phase and started again ends as an uninterrupted one: same weights, same answers."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Runs the quickstart and kills the process (as `kill -9` does: nothing is flushed, no handler runs) at the moment when
# it is about to write or rename the file whose path ends in `end`, for the `count`-th time.
DYING = """
import os, runpy, signal, sys
end, count = sys.argv.pop(1), int(sys.argv.pop(1))
seen = 0
def watch(event, arguments):
    global seen
    if event == "open" and isinstance(arguments[1], str) and arguments[1][0] in "wax" or event == "os.rename":
        if str(arguments[0]).endswith(end):
            seen += 1
            if seen == count:
                os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(watch)
runpy.run_module("emma.world.quickstart", run_name="__main__", alter_sys=True)
"""
# (name, end of the path, which time): in the order of a run, so that each start goes on from the kill before it.
KILLS = [
    ("training pictures of the world", "images/train/000100.png", 1),
    ("evaluation pictures of the world", "eval/pope/coco_pope_popular.json", 1),
    ("the step-0 model", "pretrain/init/provenance.json", 1),
    ("pretraining after its first checkpoint", "pretrain/checkpoint-6.partial/trainer_state.json", 1),
    ("saving what pretraining made", "pretrain/model.partial", 1),
    ("publishing a checkpoint of fine-tuning", "finetune/checkpoint-3.partial", 1),
    ("fine-tuning after its first checkpoint", "finetune/log.jsonl", 2),
    ("saving the fine-tuned model", "finetune/model.partial/README.md", 1),
    ("evaluation, in the second batch of answers", "eval/world/predictions.jsonl", 2),
    ("evaluation, in a report", "eval/untrained/mmvp/report.md", 1),
    ("the quickstart's own record", "quickstart.partial", 2),
]


def quickstart(output: Path, *, die_at: tuple[str, int] | None = None) -> subprocess.CompletedProcess:
    """One start of the shortened quickstart; `die_at`: (end of a path, count) where it is killed."""
    entry = ["-m", "emma.world.quickstart"] if die_at is None else ["-c", DYING, die_at[0], str(die_at[1])]
    return subprocess.run(
        [sys.executable, *entry, "--fast", "--output", str(output)],
        env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def record(output: Path) -> dict:
    return json.loads((output / "tiny-fast" / "quickstart.json").read_text())


def answers(output: Path) -> dict[str, list[dict]]:
    """Rows of every answers file, by the file's path below the output."""
    files = sorted((output / "tiny-fast" / "eval").rglob("predictions.jsonl"))
    return {
        str(file.relative_to(output)): sorted(map(json.loads, file.read_text().splitlines()), key=lambda row: row["id"])
        for file in files
    }


def learning(output: Path, stage: str) -> list[tuple]:
    """What log.jsonl says of the training itself, without timings."""
    lines = map(json.loads, (output / "tiny-fast" / stage / "log.jsonl").read_text().splitlines())
    return [tuple(line[key] for key in ("step", "loss", "grad_norm", "learning_rate", "epoch")) for line in lines]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_in_every_phase_ends_with_the_same_weights_answers_and_figures(tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    done = quickstart(whole)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]

    for name, end, count in KILLS:
        killed = quickstart(broken, die_at=(end, count))
        said = f"{name}: {killed.returncode}\n{killed.stdout[-3000:]}{killed.stderr[-3000:]}"
        assert killed.returncode == -signal.SIGKILL, f"never came to {said}"
        if name == "pretraining after its first checkpoint":
            assert (broken / "tiny-fast/pretrain/checkpoint-3").is_dir()
            assert not (broken / "tiny-fast/pretrain/checkpoint-6").exists()
        if name == "saving what pretraining made":
            assert "pretrain goes on from" in killed.stdout, said
    again = quickstart(broken)
    assert again.returncode == 0, again.stdout[-3000:] + again.stderr[-3000:]

    ours, theirs = record(broken), record(whole)
    assert ours["weights_sha256"] == theirs["weights_sha256"]
    assert ours["chat"]["answer"] == theirs["chat"]["answer"]
    assert ours["phases"].keys() == theirs["phases"].keys()
    assert ours["reports"].keys() == theirs["reports"].keys()
    for key, report in ours["reports"].items():
        assert report["figures"] == theirs["reports"][key]["figures"], key
        assert report["answers"] == theirs["reports"][key]["answers"], key
    assert answers(broken) == answers(whole)
    for stage in ("pretrain", "finetune"):
        assert learning(broken, stage) == learning(whole, stage), stage
    assert not list(broken.rglob("*.partial")) + list(broken.rglob("*.tmp")), "nothing half-written stays behind"
