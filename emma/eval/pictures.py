"""Pictures of questions: files, or the bytes in a table's cell (a parquet's image struct, MMBench's base64)."""

import base64
import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from PIL import Image

from emma.errors import EmmaError


@dataclass(frozen=True, eq=False)
class Embedded:
    """A picture inside a table. `name` tells it from others (its path in the table, or the row's id and a number);
    `size` is its number of bytes, which stands for its content in a fingerprint; `read` gives the encoded file. Two are
    equal, so that one is encoded for both, when they have the same `digest` of their content; one without is like no
    other, whatever it is called."""

    name: str
    size: int
    read: Callable[[], bytes]
    digest: str = ""

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Embedded) and self.digest != "" and self.digest == other.digest)

    def __hash__(self) -> int:
        return hash(self.digest or id(self))

    @classmethod
    def of_struct(cls, cell: Any, name: str) -> "Embedded":
        """From a parquet's image struct `{"bytes", "path"}`.

        Raises:
            EmmaError: no bytes there.
        """
        content = cell.get("bytes") if isinstance(cell, dict) else None
        if not content:
            raise EmmaError(f"picture {name}: the table holds no bytes for it, got {str(cell)[:60]}")
        return cls(cell.get("path") or name, len(content), lambda: content, _digest(content))

    @classmethod
    def of_base64(cls, text: str, name: str) -> "Embedded":
        """From a base64 cell."""
        return cls(name, len(text), lambda: base64.b64decode(text), _digest(text.encode()))


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@dataclass(frozen=True)
class Pasted:
    """Several pictures as one: side by side on black, left to right, tops aligned, no scaling and no gap, as the
    released EMMA shows the several images of a question."""

    pictures: "tuple[Path | Embedded, ...]"

    def paste(self) -> Image.Image:
        """RGB, as wide as all together and as high as the highest."""
        parts = [open_picture(picture) for picture in self.pictures]
        canvas = Image.new("RGB", (sum(part.width for part in parts), max(part.height for part in parts)))
        left = 0
        for part in parts:
            canvas.paste(part, (left, 0))
            left += part.width
        return canvas


@dataclass(frozen=True)
class Blank:
    """A square of CLIP's mean colour, in place of a picture that a control takes away."""

    side: int = 336

    def draw(self) -> Image.Image:
        from emma.processing.images import CLIP_MEAN

        return Image.new("RGB", (self.side, self.side), tuple(round(255 * channel) for channel in CLIP_MEAN))


Picture = Path | Embedded | Pasted | Blank


def open_picture(picture: Picture) -> Image.Image:
    """The decoded RGB picture.

    Raises:
        EmmaError: missing or damaged; names it.
    """
    if isinstance(picture, Pasted):
        return picture.paste()
    if isinstance(picture, Blank):
        return picture.draw()
    if isinstance(picture, Path):
        from emma.processing.images import open_image  # brings torch, which scoring does without

        return open_image(picture)
    try:
        image = Image.open(io.BytesIO(picture.read()))
        return image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise EmmaError(f"picture {picture.name} is damaged: {error}") from error


def describe(picture: Path | Embedded) -> tuple[str, int]:
    """(name, size in bytes) for a fingerprint.

    Raises:
        FileNotFoundError: a file that is not there.
    """
    if isinstance(picture, Path):
        return picture.name, picture.stat().st_size
    return picture.name, picture.size


def in_parquet(path: Path, column: str) -> list[list[Embedded]]:
    """The pictures of each row in a column of image structs, or of lists of them; empty where a cell is null.

    Bytes are read when a picture is opened, a row group at a time, and not kept: only their number is counted here.
    """
    import pyarrow.parquet as pq

    file = pq.ParquetFile(path)
    if column not in file.schema_arrow.names:
        return [[] for _ in range(file.metadata.num_rows)]
    rows: list[list[Embedded]] = []
    for group in range(file.num_row_groups):
        for row, cell in enumerate(_cells(path, group, column)):
            structs = cell if isinstance(cell, list) else [cell] if cell is not None else []
            rows.append([])
            for number, struct in enumerate(structs):
                name = f"{struct.get('path') or f'{path.stem}-{group}-{row}-{column}'}#{number}"
                read = partial(_bytes, path, group, column, row, number)
                content = struct.get("bytes") or b""
                rows[-1].append(Embedded(name, len(content), read, _digest(content)))
    _cells.cache_clear()
    return rows


@lru_cache(maxsize=4)
def _cells(path: Path, group: int, column: str) -> list[Any]:
    import pyarrow.parquet as pq

    return pq.ParquetFile(path).read_row_group(group, columns=[column])[column].to_pylist()


def _bytes(path: Path, group: int, column: str, row: int, number: int) -> bytes:
    cell = _cells(path, group, column)[row]
    return (cell[number] if isinstance(cell, list) else cell)["bytes"]
