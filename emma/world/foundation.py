"""What stands in for CLIP and Vicuna: the world's pretrained towers and language model, and how they are rebuilt."""

import hashlib
import json
import logging
from pathlib import Path

logger = logging.getLogger(__name__)

FOLDER = Path(__file__).parent / "foundation"  # ships with the package
PARTS = ("clip", "llm")
STEPS = {"clip": 400, "llm": 4000}
SHORT_STEPS = {"clip": 20, "llm": 20}  # proves the path, learns next to nothing


def rebuild(folder: Path, *, seed: int = 0, short: bool = False, parts: tuple[str, ...] = PARTS) -> dict:
    """Train CLIP (`folder`/clip) and the language model (`folder`/llm) from nothing, or one of them.

    Returns what `provenance.json` then says of each part: command, seed, steps, metrics, seconds, hashes, versions.
    """
    from emma.world.tiny_clip import train_clip
    from emma.world.tiny_llm import train_llm

    path = folder / "provenance.json"
    provenance = json.loads(path.read_text()) if path.exists() else {}
    for part in parts:
        train = {"clip": train_clip, "llm": train_llm}[part]
        metrics = train(folder / part, seed=seed, steps=(SHORT_STEPS if short else STEPS)[part])
        provenance[part] = describe(folder, part, seed, short, metrics)
        path.write_text(json.dumps(provenance, indent=2) + "\n")
    return provenance


def describe(folder: Path, part: str, seed: int, short: bool, metrics: dict) -> dict:
    """The provenance of one part."""
    import torch

    from emma.checkpoints.provenance import collect

    command = f"python -m emma.world foundation --only {part} --seed {seed}"
    return {
        "command": command + (" --short" if short else ""),
        "seed": seed,
        "threads": torch.get_num_threads(),
        **metrics,
        "sha256": file_hashes(folder / part),
        **collect(),
    }


def file_hashes(folder: Path) -> dict[str, str]:
    """sha256 of each file of a folder."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}
