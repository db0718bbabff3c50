"""MME: two yes/no questions an image in fourteen tasks."""

from pathlib import Path

from emma.eval.benchmark import Benchmark, Item
from emma.eval.prompts import SHORT
from emma.eval.scoring import mme as scoring


def items(data: Path, images: Path | None = None) -> list[Item]:
    """Question without MME's suffix, SHORT suffix; pictures in the tasks' folders."""
    root = next((f for f in (data / "MME_Benchmark_release_version", data) if f.is_dir()), data)
    return [
        Item(
            row.id,
            scoring.bare(row.question),
            f"{scoring.bare(row.question)}\n{SHORT}",
            ((images or root) / row.picture,),
            row.task,
            {"question": row.question},
        )
        for row in scoring.read(data)
    ]


BENCHMARK = Benchmark(
    name="mme",
    title="MME",
    files="MME_Benchmark_release_version/{task} with images and .txt files",
    items=items,
    score=scoring.score,
    scorer=scoring.SCORER,
    scorer_version=scoring.VERSION,
    max_new_tokens=128,
    settings=scoring.SETTINGS,
)
