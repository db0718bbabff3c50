"""AMBER: descriptions and yes/no questions, for hallucinations."""

from pathlib import Path

from emma.eval.benchmark import Benchmark, Item, existing_images
from emma.eval.scoring import amber as scoring

YES_NO = "Answer with yes or no"


def items(data: Path, images: Path | None = None, part: str = "all") -> list[Item]:
    """Generative: the query alone; discriminative: the query and `Answer with yes or no`. Images in `image`."""
    folder = existing_images([images] if images else [data / "image", data / "images"], "AMBER")
    generative = {row.id for row in scoring.read(data) if row.generative}
    rows = []
    for query in scoring.read_queries(data):
        kind = "generative" if query.id in generative else "discriminative"
        if part in ("all", kind):
            prompt = query.text if kind == "generative" else f"{query.text}\n{YES_NO}"
            rows.append(Item(str(query.id), query.text, prompt, (folder / query.image,), kind))
    return rows


BENCHMARK = Benchmark(
    name="amber",
    title="AMBER",
    files="data/annotations.json, data/query, data/relation.json, data/safe_words.txt and the folder image",
    items=items,
    score=scoring.score,
    scorer=scoring.SCORER,
    scorer_version=scoring.VERSION,
    max_new_tokens=1024,
    settings=scoring.SETTINGS,
)
