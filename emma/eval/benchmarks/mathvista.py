"""MathVista: mathematics with pictures."""

from pathlib import Path

from emma.eval.benchmark import Benchmark, Item
from emma.eval.scoring import mathvista as scoring


def items(data: Path, images: Path | None = None, split: str = "testmini", instruction: str = "question") -> list[Item]:
    """The data set's `query` (hint, question, choices), with its picture. For CLIP: the question, or the hint as in the
    released code (only five different ones)."""
    return [
        Item(
            row.pid,
            row.question if instruction == "question" else row.query.split("\n")[0],
            row.query or row.question,
            ((images or data) / row.image,),
            row.metadata.get("task") or None,
        )
        for row in scoring.read(data, split)
    ]


BENCHMARK = Benchmark(
    name="mathvista",
    title="MathVista",
    files="data/testmini.json, data/query.json and images (lupantech/MathVista)",
    items=items,
    score=scoring.score,
    scorer=scoring.SCORER,
    scorer_version=scoring.VERSION,
    max_new_tokens=1024,
    settings=scoring.SETTINGS,
)
