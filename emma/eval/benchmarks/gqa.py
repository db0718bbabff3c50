"""GQA: compositional questions about Visual Genome images."""

from pathlib import Path

from emma.eval.benchmark import Benchmark, Item, existing_images
from emma.eval.prompts import SHORT
from emma.eval.scoring import gqa as scoring


def items(data: Path, images: Path | None = None, split: str = "testdev_balanced") -> list[Item]:
    """Question and SHORT suffix, for balanced questions; images in `images`."""
    folder = existing_images([images or data / "images"], "GQA")
    return [
        Item(row.id, row.question, f"{row.question}\n{SHORT}", (folder / f"{row.image}.jpg",), row.structural or None)
        for row in scoring.read_questions(data, split)
        if row.balanced
    ]


BENCHMARK = Benchmark(
    name="gqa",
    title="GQA",
    files="questions1.2/testdev_balanced_questions.json and the folder images",
    items=items,
    score=scoring.score,
    scorer=scoring.SCORER,
    scorer_version=scoring.VERSION,
    max_new_tokens=128,
    settings=scoring.SETTINGS,
)
