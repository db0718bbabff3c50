"""Pictures of questions: files, or the bytes in a table's cell (a parquet's image struct, MMBench's base64)."""

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from emma.errors import EmmaError


@dataclass(frozen=True)
class Embedded:
    """A picture inside a table. `name` tells it from others (its path in the table, or the row's id and a number);
    `size` is its number of bytes, which stands for its content in a fingerprint; `read` gives the encoded file."""

    name: str
    size: int
    read: Callable[[], bytes]

    @classmethod
    def of_struct(cls, cell: Any, name: str) -> "Embedded":
        """From a parquet's image struct `{"bytes", "path"}`.

        Raises:
            EmmaError: no bytes there.
        """
        content = cell.get("bytes") if isinstance(cell, dict) else None
        if not content:
            raise EmmaError(f"picture {name}: the table holds no bytes for it, got {str(cell)[:60]}")
        return cls(cell.get("path") or name, len(content), lambda: content)

    @classmethod
    def of_base64(cls, text: str, name: str) -> "Embedded":
        """From a base64 cell."""
        return cls(name, len(text), lambda: base64.b64decode(text))


Picture = Path | Embedded


def open_picture(picture: Picture) -> Image.Image:
    """The decoded RGB picture.

    Raises:
        EmmaError: missing or damaged; names it.
    """
    if isinstance(picture, Path):
        from emma.processing.images import open_image  # brings torch, which scoring does without

        return open_image(picture)
    try:
        image = Image.open(io.BytesIO(picture.read()))
        return image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise EmmaError(f"picture {picture.name} is damaged: {error}") from error


def describe(picture: Picture) -> tuple[str, int]:
    """(name, size in bytes) for a fingerprint.

    Raises:
        FileNotFoundError: a file that is not there.
    """
    if isinstance(picture, Path):
        return picture.name, picture.stat().st_size
    return picture.name, picture.size
