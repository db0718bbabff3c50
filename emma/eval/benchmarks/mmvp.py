"""MMVP: two similar images, one question with two options, and both must be answered rightly."""

from pathlib import Path

from emma.eval.benchmark import Benchmark, Item, existing_images
from emma.eval.prompts import LETTER, option_lines
from emma.eval.scoring import mmvp as scoring


def items(data: Path, images: Path | None = None) -> list[Item]:
    """Question, options as `A. ...` lines, LETTER suffix (the released EMMA's prompt)."""
    folder = existing_images([images] if images else [data / "MMVP Images"], "MMVP")
    return [
        Item(
            str(row.index),
            row.question,
            f"{row.question}\n{option_lines(tuple(row.options.values()))}\n{LETTER}",
            (folder / f"{row.index}.jpg",),
        )
        for row in scoring.read(data)
    ]


BENCHMARK = Benchmark(
    name="mmvp",
    title="MMVP",
    files="Questions.csv and the folder 'MMVP Images' (data set MMVP/MMVP)",
    items=items,
    score=scoring.score,
    scorer=scoring.SCORER,
    scorer_version=scoring.VERSION,
    max_new_tokens=1024,
    hub="MMVP/MMVP",
)
