"""How the sets are written: folders, pictures under COCO's names, JSON."""

import json
import random
from pathlib import Path
from typing import Any

from emma.world.render import render
from emma.world.scenes import Scene


def make_folder(path: Path) -> Path:
    """`path` itself, made with all above it."""
    path.mkdir(parents=True, exist_ok=True)
    return path


def write_lines(path: Path, rows: list[dict]) -> None:
    """JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_json(path: Path, value: Any) -> None:
    """One JSON value, in a folder that is made for it."""
    make_folder(path.parent)
    path.write_text(json.dumps(value) + "\n")


def coco_name(index: int) -> str:
    """File name of an image of COCO's validation part."""
    return f"COCO_val2014_{index:012d}.jpg"


def save_jpeg(scene: Scene, path: Path, rng: random.Random) -> None:
    """The scene's picture, as benchmarks ship theirs."""
    render(scene, rng).save(path, quality=95)
