"""Checkpoint folders on disk: written under a temporary name, sealed, found and rotated. No torch."""

import json
import logging
import os
import re
import shutil
from pathlib import Path
from typing import Any

from emma.checkpoints.seal import SEAL, break_seal, seal
from emma.errors import EmmaError
from emma.train.identity import differences

logger = logging.getLogger(__name__)

STAMP = "stamp.json"
PARTIAL = ".partial"
_NAME = re.compile(r"checkpoint-(\d+)")


def is_whole(checkpoint: Path) -> bool:
    """Whether a checkpoint is sealed and every file that the seal names has its size."""
    try:
        files = json.loads((checkpoint / SEAL).read_text(encoding="utf-8"))["files"]
        return all((checkpoint / name).stat().st_size == size for name, size in files.items())
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError, KeyError):
        return False


def publish(partial: Path, target: Path) -> None:
    """Seal `partial` and give it its name; whatever bore the name before is removed first."""
    seal(partial)
    if target.exists():
        remove(target)
    partial.rename(target)
    parent = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(parent)
    finally:
        os.close(parent)


def remove(folder: Path) -> None:
    """Delete a checkpoint; the seal goes first, so that a half deleted one never looks complete."""
    break_seal(folder)
    shutil.rmtree(folder)


def checkpoints(stage_folder: Path) -> dict[int, Path]:
    """Complete checkpoints by step, in rising order."""
    found = {}
    for path in stage_folder.glob("checkpoint-*"):
        if (match := _NAME.fullmatch(path.name)) and is_whole(path):
            found[int(match[1])] = path
    return dict(sorted(found.items()))


def rotate(stage_folder: Path, keep: int) -> None:
    """Delete all complete checkpoints but the newest `keep`, and what interrupted savings left behind."""
    for path in list(checkpoints(stage_folder).values())[:-keep]:
        remove(path)
    for path in stage_folder.glob(f"checkpoint-*{PARTIAL}"):
        shutil.rmtree(path)


def mismatch(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """In what two stamps differ; what could not be determined now (None) is not compared."""
    skipped = {key for key in (*old, *new) if old.get(key) is None or new.get(key) is None} | {"hash"}
    return differences(*({k: v for k, v in stamp.items() if k not in skipped} for stamp in (old, new)))


def check_same_run(folder: Path, old: dict[str, Any], new: dict[str, Any]) -> None:
    """Refuse what another recipe, other data or another starting point made.

    Raises:
        EmmaError: names the folder and prints the differences.
    """
    if changes := mismatch(old, new):
        raise EmmaError(
            f"{folder} was made by another recipe: {'; '.join(changes)}. "
            "Give the new run another output=, take the change back, or start over with --resume never"
        )


def find_checkpoint(stage_folder: Path, resume: str, stamp: dict[str, Any]) -> Path | None:
    """The checkpoint to go on from, None to start at the beginning.

    Args:
        resume: `auto` (newest complete one), `never`, or a path (from the caller's directory).
    Raises:
        EmmaError: a path that is no complete checkpoint, or a checkpoint of another recipe.
    """
    if resume == "never":
        return None
    if resume == "auto":
        found = checkpoints(stage_folder)
        if not found:
            return None
        checkpoint = found[max(found)]
    else:
        checkpoint = Path(resume).expanduser().absolute()
        if not is_whole(checkpoint):
            state = "is not complete" if checkpoint.is_dir() else "does not exist"
            known = ", ".join(str(path) for path in checkpoints(stage_folder).values()) or "none"
            raise EmmaError(f"--resume {resume}: checkpoint {checkpoint} {state}; complete ones: {known}")
    try:
        old = json.loads((checkpoint / STAMP).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise EmmaError(f"{checkpoint} is no training checkpoint (it has no {STAMP})") from None
    check_same_run(checkpoint, old, stamp)
    return checkpoint
