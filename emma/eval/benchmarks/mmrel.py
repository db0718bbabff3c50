"""MMRel: relations between objects, the yes/no part."""

from pathlib import Path

from emma.eval.benchmark import Benchmark, Item
from emma.eval.prompts import SHORT
from emma.eval.scoring import mmrel as scoring

YES_NO = "Please answer yes or no."


def items(data: Path, images: Path | None = None, suffix: str = "yes_or_no") -> list[Item]:
    """Question and suffix; image paths start at the data folder, or at `images`."""
    ending = YES_NO if suffix == "yes_or_no" else SHORT
    rows = []
    for row in scoring.read(data):
        category = "/".join(row.groups) or None
        picture = (images or data) / row.image
        rows.append(Item(row.id, row.question, f"{row.question}\n{ending}", (picture,), category))
    return rows


BENCHMARK = Benchmark(
    name="mmrel",
    title="MMRel",
    files="tables in json/ and image folders (jiahaonie/MMRel)",
    items=items,
    score=scoring.score,
    scorer=scoring.SCORER,
    scorer_version=scoring.VERSION,
    max_new_tokens=128,
    settings=scoring.SETTINGS,
)
