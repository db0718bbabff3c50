"""The shortened quickstart, from the shell script to the last line, and that a second call has nothing left to do."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def quickstart(output: Path, folder: Path) -> tuple[subprocess.CompletedProcess, float]:
    """Run `quickstart.sh --fast` from another folder, in this environment, without input or network."""
    variables = os.environ | {"EMMA_VENV": sys.prefix, "EMMA_NO_INSTALL": "1", "HF_HUB_OFFLINE": "1"}
    command = ["bash", str(ROOT / "scripts/quickstart.sh"), "--fast", "--output", str(output)]
    start = time.monotonic()
    done = subprocess.run(
        command, cwd=folder, env=variables, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done, time.monotonic() - start


@pytest.mark.timeout(900)
def test_from_nothing_to_a_table_and_again_in_seconds(tmp_path):
    output = tmp_path / "an output"
    first, seconds = quickstart(output, tmp_path)
    for stage in ("pretrain", "finetune"):
        assert list(output.rglob(f"{stage}/model/complete.json")), f"no complete model of {stage}"
    reports = [json.loads(path.read_text()) for path in output.rglob("report.json")]
    assert {"mmvp", "pope", "world"} <= {report["benchmark"] for report in reports}
    assert "bash scripts/eval/mmvp.sh" in first.stdout, "the last lines name commands to try next"
    weights = {path: path.stat().st_mtime for path in output.rglob("model.safetensors")}

    _, again = quickstart(output, tmp_path)
    assert {path: path.stat().st_mtime for path in output.rglob("model.safetensors")} == weights
    assert again < max(60, seconds / 3), f"the second call took {again:.0f} s of {seconds:.0f} s"
