"""MM-Vet: open questions on integrated skills, graded by a judge."""

from pathlib import Path

from emma.eval.benchmark import Benchmark, Item, existing_images
from emma.eval.scoring import mmvet as scoring


def items(data: Path, images: Path | None = None) -> list[Item]:
    """The question alone; images in `images`."""
    folder = existing_images([images or data / "images"], "MM-Vet")
    return [Item(row.id, row.question, row.question, (folder / row.image,)) for row in scoring.read(data)]


BENCHMARK = Benchmark(
    name="mmvet",
    title="MM-Vet",
    files="mm-vet.json and the folder images",
    items=items,
    score=scoring.score,
    scorer=scoring.SCORER,
    scorer_version=scoring.VERSION,
    max_new_tokens=1024,
    settings=scoring.SETTINGS,
)
