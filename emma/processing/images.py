"""Images to pixel tensors, exactly as CLIP's PIL pre-processing and LLaVA-1.5 do it."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from emma.errors import EmmaError

MODES = ("pad", "square")
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
MAX_RATIO = 200
"""Beyond this aspect ratio `square` would first blow a sliver up to hundreds of megabytes."""


def open_image(path: str | Path) -> Image.Image:
    """The image as RGB, decoded; alpha is dropped, not composited, and EXIF rotation is not applied, as in LLaVA.

    Raises:
        EmmaError: missing, a directory, unreadable, not an image, truncated, or far too large.
    """
    path = Path(path)
    if path.is_dir():
        raise EmmaError(f"image {path} is a directory; give a file")
    if not path.exists():
        raise EmmaError(f"image {path} does not exist")
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except UnidentifiedImageError as error:
        raise EmmaError(f"image {path} is not an image that Pillow can read ({path.stat().st_size} bytes)") from error
    except Image.DecompressionBombError as error:
        pixels = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise EmmaError(f"image {path} has more than {pixels:,} pixels; make it smaller ({error})") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise EmmaError(f"image {path} is damaged or cannot be read: {error}") from error


def preprocess(
    image: Image.Image,
    size: int,
    mode: str,
    mean: Sequence[float] = CLIP_MEAN,
    std: Sequence[float] = CLIP_STD,
) -> torch.Tensor:
    """Pixels of one image, float32[3, size, size], normalised by `mean` and `std`.

    `pad` first sets the image on a centred square of the mean colour, so nothing is lost (LLaVA-1.5 stage 2);
    `square` resizes the shorter edge and cuts the centre (CLIP, LLaVA-1.5 stage 1). Bicubic, by Pillow.
    """
    if mode not in MODES:
        raise EmmaError(f"image_mode: {mode!r} is not one of {', '.join(MODES)}")
    image = image.convert("RGB")
    width, height = image.size
    if not width or not height:
        raise EmmaError(f"the image has no pixels ({width} x {height})")
    if mode == "pad" and width != height:
        side = max(width, height)
        square = Image.new("RGB", (side, side), tuple(int(x * 255) for x in mean))
        square.paste(image, ((side - width) // 2, (side - height) // 2))
        image, width, height = square, side, side
    if max(width, height) > MAX_RATIO * min(width, height):
        raise EmmaError(
            f"the image is {width} x {height}, beyond an aspect ratio of {MAX_RATIO}; crop it or use image_mode: pad"
        )
    short = min(width, height)
    width, height = int(size * width / short), int(size * height / short)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    image = image.crop((left, top, left + size, top + size))
    pixels: np.ndarray = np.asarray(image, dtype=np.float32) / np.float32(255)
    pixels = (pixels - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def preprocess_all(
    images: Sequence[Image.Image], size: int, mode: str, mean: Sequence[float], std: Sequence[float], name: str
) -> torch.Tensor:
    """Pixels of the images of `name`, float32[I, 3, size, size], see `preprocess`; I may be 0."""
    try:
        pixels = [preprocess(image, size, mode, mean, std) for image in images]
    except EmmaError as error:
        raise EmmaError(f"{name}: {error}") from error
    return torch.stack(pixels) if pixels else torch.zeros(0, 3, size, size)
