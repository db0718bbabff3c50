"""POPE: yes/no questions about objects that are or are not in a COCO image."""

from pathlib import Path

from emma.eval.benchmark import Benchmark, Item, existing_images
from emma.eval.prompts import SHORT
from emma.eval.scoring import pope as scoring


def items(data: Path, images: Path | None = None) -> list[Item]:
    """Question and SHORT suffix; images in `images`, `val2014` (LLaVA's place) or `coco/val2014`."""
    usual = [data / "images", data / "val2014", data / "coco" / "val2014"]
    folder = existing_images([images] if images else usual, "POPE")
    return [Item(row.id, row.question, f"{row.question}\n{SHORT}", (folder / row.image,)) for row in scoring.read(data)]


BENCHMARK = Benchmark(
    name="pope",
    title="POPE",
    files="coco_pope_{random,popular,adversarial}.json (RUCAIBox/POPE, output/coco) and COCO's val2014 images",
    items=items,
    score=scoring.score,
    scorer=scoring.SCORER,
    scorer_version=scoring.VERSION,
    max_new_tokens=128,
)
