"""A-Bench: questions about AI-generated images."""

from pathlib import Path

from emma.eval.benchmark import Benchmark, Item
from emma.eval.pictures import in_parquet
from emma.eval.prompts import LETTER, option_lines
from emma.eval.scoring import abench as scoring
from emma.eval.tables import find_files


def items(data: Path, images: Path | None = None, split: str = "dev") -> list[Item]:
    """Question, option lines, LETTER suffix; pictures inside the parquet files, or in `images` by id."""
    rows = scoring.read(data, split)
    pictures = {}
    if images is None:
        files = find_files(
            data, (f"data/{split}-*.parquet", f"{split}-*.parquet", f"*{split}*.parquet"), "A-Bench rows"
        )
        columns = [cell for file in files if file.suffix == ".parquet" for cell in in_parquet(file, "image")]
        pictures = {row.id: tuple(cell) for row, cell in zip(rows, columns, strict=False)}
    return [
        Item(
            row.id,
            row.question,
            f"{row.question}\n{option_lines(tuple(row.options.values()))}\n{LETTER}",
            pictures.get(row.id, ()) if images is None else (images / f"{row.id}.png",),
            row.category or None,
        )
        for row in rows
    ]


BENCHMARK = Benchmark(
    name="abench",
    title="A-Bench",
    files="data/dev-*.parquet (q-future/A-Bench-HF)",
    items=items,
    score=scoring.score,
    scorer=scoring.SCORER,
    scorer_version=scoring.VERSION,
    max_new_tokens=1024,
    settings=scoring.SETTINGS,
    hub="q-future/A-Bench-HF",
)
