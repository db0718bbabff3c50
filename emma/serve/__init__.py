"""Serving a trained model: chat in the terminal, and where the last quickstart model is."""

from pathlib import Path

from emma.checkpoints.seal import SEAL, is_complete
from emma.errors import EmmaError
from emma.paths import resolve


def find_model(root: Path | None = None) -> Path:
    """The newest complete model of a quickstart: `runs/tiny*/finetune/model` below `root` (default: the project).

    Raises `EmmaError` that says how to get one.
    """
    runs = (root or resolve(".")) / "runs"
    seals = sorted(runs.glob(f"tiny*/finetune/model/{SEAL}"), key=lambda path: path.stat().st_mtime, reverse=True)
    newest = next((seal.parent for seal in seals if is_complete(seal.parent)), None)
    if newest is None:
        raise EmmaError(
            f"no trained model in {runs}/tiny*/finetune/model: make one with bash scripts/quickstart.sh, "
            "or name a checkpoint folder with --model FOLDER"
        )
    return newest
