"""ScienceQA: school questions with options, some with a picture."""

from pathlib import Path

from emma.eval.benchmark import Benchmark, Item
from emma.eval.prompts import LETTER, option_lines
from emma.eval.scoring import scienceqa as scoring


def items(data: Path, images: Path | None = None, split: str = "test") -> list[Item]:
    """`Context: hint`, question, option lines, LETTER suffix; pictures in `images/{split}/{id}`."""
    rows = []
    for row in scoring.read(data, split):
        context = f"Context: {row.hint}\n" if row.hint else ""
        asked = f"{context}{row.question}"
        prompt = f"{asked}\n{option_lines(tuple(row.choices.values()))}\n{LETTER}"
        folder = (images or data / "images") / (row.split or split) / row.id
        pictures = (folder / row.image,) if row.image else ()
        rows.append(Item(row.id, asked, prompt, pictures, row.subject or None))
    return rows


BENCHMARK = Benchmark(
    name="scienceqa",
    title="ScienceQA",
    files="problems.json, pid_splits.json and images/{train,val,test}/{id}/image.png (lupantech/ScienceQA)",
    items=items,
    score=scoring.score,
    scorer=scoring.SCORER,
    scorer_version=scoring.VERSION,
    max_new_tokens=1024,
    settings=scoring.SETTINGS,
)
