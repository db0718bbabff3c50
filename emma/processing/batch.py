"""Encoded rows to one padded batch."""

from collections.abc import Sequence

import torch
from transformers import BatchFeature

from emma.errors import EmmaError
from emma.processing.tokens import IGNORE


def pad_batch(rows: Sequence[dict], pad_id: int, side: str = "right") -> BatchFeature:
    """`input_ids`, `attention_mask`, and `labels` if present, int64[B, L]; images concatenated in reading order.

    The mask comes from the lengths, so it does not matter which id pads. `side`: `right` to train, `left` to generate.
    """
    if side not in ("right", "left"):
        raise EmmaError(f"padding side: {side!r} is neither right nor left")
    length = max(len(row["input_ids"]) for row in rows)

    def padded(values: torch.Tensor, value: int) -> torch.Tensor:
        missing = length - len(values)
        return torch.nn.functional.pad(values, (missing, 0) if side == "left" else (0, missing), value=value)

    batch = {
        "input_ids": torch.stack([padded(row["input_ids"], pad_id) for row in rows]),
        "attention_mask": torch.stack([padded(torch.ones_like(row["input_ids"]), 0) for row in rows]),
    }
    if "labels" in rows[0]:
        batch["labels"] = torch.stack([padded(row["labels"], IGNORE) for row in rows])
    return BatchFeature(batch | join_images(rows))


def join_images(rows: Sequence[dict]) -> dict[str, torch.Tensor]:
    """What the rows hold an entry of per image (`pixel_values` or `vision_features`, `instruction_ids`), in order."""
    visual = ("pixel_values", "vision_features", "instruction_ids")
    return {key: torch.cat([row[key] for row in rows]) for key in visual if key in rows[0]}


def group_images(images, count: int, single_text: bool) -> list[list]:
    """The images of each of `count` texts, from one image, a list (for one text, or one each) or a list of lists."""
    if images is None:
        return [[] for _ in range(count)]
    if not isinstance(images, (list, tuple)):
        images = [images]
    if any(isinstance(entry, (list, tuple)) for entry in images):
        groups = [list(entry) for entry in images]
    else:
        groups = [list(images)] if single_text else [[image] for image in images]
    if len(groups) != count:
        raise EmmaError(f"{count} texts but images for {len(groups)}; give a list of lists, one list per text")
    return groups
