"""VizWiz-VQA: questions of blind people about their own photographs."""

from pathlib import Path

from emma.eval.benchmark import Benchmark, Item, existing_images
from emma.eval.prompts import SHORT, UNANSWERABLE
from emma.eval.scoring import vizwiz as scoring


def items(data: Path, images: Path | None = None, split: str = "val") -> list[Item]:
    """Question with a capital letter, UNANSWERABLE and SHORT suffixes, as LLaVA asks; images in the split's folder."""
    folder = existing_images([images] if images else [data / split, data / "images"], "VizWiz")
    return [
        Item(
            row.image,
            asked := row.question[:1].upper() + row.question[1:],
            f"{asked}\n{UNANSWERABLE}\n{SHORT}",
            (folder / row.image,),
        )
        for row in scoring.read(data, split)
    ]


BENCHMARK = Benchmark(
    name="vizwiz",
    title="VizWiz",
    files="Annotations/{train,val,test}.json and the folders train, val, test (vizwiz.org)",
    items=items,
    score=scoring.score,
    scorer=scoring.SCORER,
    scorer_version=scoring.VERSION,
    max_new_tokens=128,
    settings=scoring.SETTINGS,
)
