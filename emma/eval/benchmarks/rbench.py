"""R-Bench: hallucinated relations, asked about a whole image or about two marked objects."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from emma.errors import EmmaError
from emma.eval.benchmark import Benchmark, Item, existing_images
from emma.eval.pictures import Embedded
from emma.eval.scoring import rbench as scoring

LINE = 4  # pixels


def items(data: Path, images: Path | None = None, level: str = "image", marks: str = "boxes") -> list[Item]:
    """The text alone, as the authors' demo sends it; at instance level the two objects are drawn in a red and a green
    box, and named so in the text. Images of Open Images validation in `images`."""
    folder = existing_images([images or data / "images"], "R-Bench")
    rows = []
    for row, raw in zip(scoring.read(data, level), scoring.raw_rows(data, level), strict=True):
        path = folder / row.image
        if level == "instance" and marks == "boxes":
            text = _marked(row.question, raw)
            rows.append(Item(row.id, text, text, (_boxed(path, raw),)))
        else:
            rows.append(Item(row.id, row.question, row.question, (path,)))
    return rows


def _marked(text: str, raw: Mapping[str, Any]) -> str:
    for key, colour in (("subject", "red"), ("object", "green")):
        text = text.replace(str(raw[key]), f"{raw[key]} in {colour} bounding box", 1)
    return text


def _boxed(path: Path, raw: Mapping[str, Any]) -> Embedded:
    """The picture with both boxes, drawn when it is opened; boxes are fractions x0, y0, x1, y1 of width and height."""
    try:
        boxes = {colour: tuple(map(float, raw[key])) for key, colour in (("sub_box", "red"), ("obj_box", "green"))}
    except (KeyError, TypeError, ValueError) as error:
        raise EmmaError(f"R-Bench question {raw.get('question_id')}: no sub_box and obj_box ({error!r})") from error

    def draw() -> bytes:
        from PIL import ImageDraw

        from emma.processing.images import open_image

        image = open_image(path)
        pen = ImageDraw.Draw(image)
        for colour, (x0, y0, x1, y1) in boxes.items():
            corners = (x0 * image.width, y0 * image.height, x1 * image.width, y1 * image.height)
            pen.rectangle(corners, outline=colour, width=LINE)
        content = io.BytesIO()
        image.save(content, "PNG")
        return content.getvalue()

    return Embedded(f"{path.name} {boxes}", path.stat().st_size if path.is_file() else 0, draw)


BENCHMARK = Benchmark(
    name="rbench",
    title="R-Bench",
    files="image-level_filterd.json, nocaps_image-level_rel_ids_{1..5}.json and the folder images",
    items=items,
    score=scoring.score,
    scorer=scoring.SCORER,
    scorer_version=scoring.VERSION,
    max_new_tokens=128,
    settings=scoring.SETTINGS,
)
