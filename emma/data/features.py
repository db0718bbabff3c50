"""Vision features of images on disk: encoded once, then read by every epoch and every run with the same tower."""

import hashlib
import json
import logging
import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from emma.errors import EmmaError

if TYPE_CHECKING:
    from emma.model import EmmaForConditionalGeneration
    from emma.processing.processor import EmmaProcessor

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FeatureCache:
    """V float[N, Dv] by image, each in a file of its own below `folder`.

    A file's name follows from the image's absolute path, size and time of change, so that a changed image is encoded
    again; the folder's from all else that V depends on.

    Args:
        folder: of one tower and one way to make pixels.
        shape: (N, Dv).
        dtype: the tower's.
    """

    folder: Path
    shape: tuple[int, int]
    dtype: torch.dtype

    @classmethod
    def open(cls, root: Path, model: "EmmaForConditionalGeneration", processor: "EmmaProcessor") -> "FeatureCache":
        """The cache below `root` for a model's vision tower and a processor's pixels; its `about.json` names both."""
        config, towers, weights = model.config.tower_config, model.towers, hashlib.sha256()
        for name, tensor in sorted(towers.visual.state_dict().items()):
            weights.update(f"{name} {tuple(tensor.shape)}".encode())
            weights.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy())
        about = {
            "vision_cfg": config.vision_cfg,
            "quick_gelu": config.quick_gelu,
            "weights_sha256": weights.hexdigest(),
            "dtype": str(towers.dtype).removeprefix("torch."),
            "image_mode": processor.image_mode,
            "image_size": processor.image_size,
            "image_mean": processor.image_mean,
            "image_std": processor.image_std,
        }
        text = json.dumps(about, indent=1, sort_keys=True)
        folder = root / hashlib.sha256(text.encode()).hexdigest()[:16]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "about.json").write_text(text, encoding="utf-8")
        return cls(folder, (config.num_visual_tokens, config.vision_width), towers.dtype)

    @cached_property
    def file_bytes(self) -> int:
        """Size of every file of this cache."""
        return len(_to_bytes(torch.zeros(self.shape, dtype=self.dtype)))

    def holds(self, file: Path) -> bool:
        """Whether a file from `file()` is there, with a warning if it has another size than it must have."""
        try:
            size = file.stat().st_size
        except FileNotFoundError:
            return False
        if size != self.file_bytes:
            logger.warning("%s is damaged (%d bytes instead of %d) and is made again", file, size, self.file_bytes)
        return size == self.file_bytes

    def file(self, image: str) -> Path:
        """Where an image's features are, or will be.

        Raises:
            EmmaError: there is no such image.
        """
        path = os.path.abspath(image)
        try:
            status = os.stat(path)
        except OSError as error:
            raise EmmaError(f"image {image} cannot be read: {error.strerror}") from error
        name = hashlib.sha256(f"{path}\0{status.st_size}\0{status.st_mtime_ns}".encode()).hexdigest()[:32]
        return self.folder / name[:2] / f"{name}.safetensors"

    def write(self, file: Path, features: torch.Tensor) -> None:
        """Store V float[N, Dv] under a name from `file()`, whole or not at all."""
        file.parent.mkdir(exist_ok=True)
        partial = file.with_name(f"{file.name}.{os.getpid()}.partial")
        try:
            partial.write_bytes(_to_bytes(features.to("cpu", self.dtype).contiguous()))
            partial.replace(file)
        finally:
            partial.unlink(missing_ok=True)

    def read(self, images: Sequence[str]) -> torch.Tensor:
        """V float[I, N, Dv] of some images.

        Raises:
            EmmaError: not in the cache, or damaged (the file is then removed, so that the next start makes it anew).
        """
        return torch.stack([self._read(image) for image in images]) if images else torch.zeros(0, *self.shape)

    def _read(self, image: str) -> torch.Tensor:
        file = self.file(image)
        try:
            return _from_bytes(file.read_bytes())
        except FileNotFoundError:
            raise EmmaError(
                f"image {image} has no features in {self.folder}: it has changed since the start; start again, and "
                "it is encoded anew"
            ) from None
        except (SafetensorError, ValueError) as error:
            file.unlink(missing_ok=True)
            raise EmmaError(
                f"{file}, the features of image {image}, was damaged ({error}) and is removed; start again, and it is "
                "encoded anew"
            ) from None


def _to_bytes(features: torch.Tensor) -> bytes:
    return save({"vision": features, "crc32": torch.tensor([_checksum(features)])})


def _from_bytes(content: bytes) -> torch.Tensor:
    """Raises SafetensorError or ValueError if the content is not what was stored."""
    tensors = load(content)
    if tensors.keys() != {"vision", "crc32"} or _checksum(tensors["vision"]) != int(tensors["crc32"]):
        raise ValueError("wrong checksum")
    return tensors["vision"]


def _checksum(features: torch.Tensor) -> int:
    return zlib.crc32(features.flatten().view(torch.uint8).numpy())
