"""What stands in for CLIP and Vicuna: the world's pretrained towers and language model, and how they are rebuilt."""

import hashlib
import json
import logging
import time
from pathlib import Path

logger = logging.getLogger(__name__)

FOLDER = Path(__file__).parent / "foundation"  # ships with the package
FULL = {"clip_steps": 400, "llm_steps": 4000}
SHORT = {"clip_steps": 20, "llm_steps": 20}  # proves the path, learns next to nothing


def rebuild(folder: Path, *, seed: int = 0, short: bool = False) -> dict:
    """Train CLIP and the language model from nothing into `folder`/clip and `folder`/llm.

    Returns what `provenance.json` then holds: command, seed, steps, metrics, seconds, hashes, versions.
    """
    from emma.checkpoints.provenance import collect
    from emma.world.tiny_clip import train_clip
    from emma.world.tiny_llm import train_llm

    steps = SHORT if short else FULL
    start = time.perf_counter()
    clip = train_clip(folder / "clip", seed=seed, steps=steps["clip_steps"])
    llm = train_llm(folder / "llm", seed=seed, steps=steps["llm_steps"])
    provenance = {
        "command": f"python -m emma.world foundation --seed {seed}" + (" --short" if short else ""),
        "seed": seed,
        "clip": clip,
        "llm": llm,
        "seconds": round(time.perf_counter() - start),
        "sha256": file_hashes(folder),
        "data": {"world": True},
        **collect(),
    }
    (folder / "provenance.json").write_text(json.dumps(provenance, indent=2) + "\n")
    return provenance


def file_hashes(folder: Path) -> dict[str, str]:
    """sha256 of each file of the two models."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for part in ("clip", "llm")
        for path in sorted((folder / part).iterdir())
    }
