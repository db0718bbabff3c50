"""MMMU: college questions of 30 subjects, with one picture or several."""

from pathlib import Path

from emma.eval.benchmark import Benchmark, Item
from emma.eval.pictures import in_parquet
from emma.eval.prompts import LETTER, SHORT, option_lines
from emma.eval.scoring import mmmu as scoring

MOST_IMAGES = 7


def items(data: Path, images: Path | None = None, split: str = "validation") -> list[Item]:
    """Question, all option lines and LETTER; for an open question SHORT. `<image 1>` stays in the text, and is left out
    of what CLIP may read. Pictures inside the parquet files."""
    rows, pictures = scoring.read(data, split), {}
    for file in dict.fromkeys(row.place[0] for row in rows if row.place[0].suffix == ".parquet"):
        columns = [in_parquet(file, f"image_{number}") for number in range(1, MOST_IMAGES + 1)]
        for number, cells in enumerate(zip(*columns, strict=True)):
            pictures[file, number] = tuple(picture for cell in cells for picture in cell)
    return [
        Item(
            row.id,
            _without_places(row.question),
            f"{row.question}\n{option_lines(tuple(row.options.values()))}\n{LETTER}"
            if row.options
            else f"{row.question}\n{SHORT}",
            pictures.get(row.place, ()),
            row.subject,
        )
        for row in rows
    ]


def _without_places(question: str) -> str:
    for number in range(1, MOST_IMAGES + 1):
        question = question.replace(f"<image {number}>", "")
    return " ".join(question.split()) or "What is the answer?"


BENCHMARK = Benchmark(
    name="mmmu",
    title="MMMU",
    files="{Subject}/validation-00000-of-00001.parquet (data set MMMU/MMMU)",
    items=items,
    score=scoring.score,
    scorer=scoring.SCORER,
    scorer_version=scoring.VERSION,
    max_new_tokens=1024,
    settings=scoring.SETTINGS,
    several_images="side_by_side",
    hub="MMMU/MMMU",
)
