"""The tiny world's own held-out questions, by type: existence, count, colour, shape, place, relation ..."""

from pathlib import Path

from emma.eval.benchmark import Benchmark, Item, existing_images
from emma.eval.prompts import SHORT
from emma.eval.scoring import world as scoring


def items(data: Path, images: Path | None = None) -> list[Item]:
    """Question and SHORT suffix."""
    folder = existing_images([images or data / "images"], "world")
    return [Item(row.id, row.question, f"{row.question}\n{SHORT}", (folder / row.image,)) for row in scoring.read(data)]


BENCHMARK = Benchmark(
    name="world",
    title="world (held-out questions)",
    files="questions.jsonl and the folder 'images', both written by: python -m emma.data world",
    items=items,
    score=scoring.score,
    scorer=scoring.SCORER,
    scorer_version=scoring.VERSION,
    max_new_tokens=32,
)
