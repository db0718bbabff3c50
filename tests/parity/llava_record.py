"""What the released LLaVA-1.5 code computed on tiny random weights, trimmed copy in tests/assets/parity."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from emma.processing.images import open_image
from emma.processing.tokens import IGNORE

ASSETS = Path(__file__).parent.parent / "assets" / "parity"
SIZE, N, PLACEHOLDER = 56, 16, 640
"""Image size, visual tokens per image, and the placeholder id: the first one outside the vocabulary of 640."""

EXPECTED = load_file(ASSETS / "llava15" / "expected.safetensors")
RECORD = json.loads((ASSETS / "llava15" / "expected.json").read_text())
INSTRUCT = {row["id"]: row for row in json.loads((ASSETS / "data" / "instruct.json").read_text())}
PRETRAIN = json.loads((ASSETS / "data" / "pretrain.json").read_text())


def with_images(row: dict) -> dict:
    return row | {"images": [open_image(ASSETS / "images" / row["image"])] if "image" in row else []}


def expand(ids: torch.Tensor, labels: torch.Tensor | None = None) -> tuple[list[int], list[int]]:
    """Recorded ids have one -200 for an image: here it is N placeholders, none of them supervised."""
    labels = ids if labels is None else labels
    pairs = zip(ids.tolist(), labels.tolist(), strict=True)
    rows = [pair for i, label in pairs for pair in ([(PLACEHOLDER, IGNORE)] * N if i == -200 else [(i, label)])]
    return [i for i, _ in rows], [label for _, label in rows]
