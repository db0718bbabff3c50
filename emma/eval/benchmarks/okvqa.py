"""OK-VQA: questions about COCO images that need outside knowledge."""

from pathlib import Path

from emma.eval.benchmark import Benchmark, Item, existing_images
from emma.eval.prompts import SHORT, UNANSWERABLE
from emma.eval.scoring import okvqa as scoring


def items(data: Path, images: Path | None = None, split: str = "val2014", suffix: str = "short") -> list[Item]:
    """Question and SHORT suffix, with UNANSWERABLE between them where the setting says so; images as for VQAv2."""
    ending = SHORT if suffix == "short" else f"{UNANSWERABLE}\n{SHORT}"
    folder = existing_images([images] if images else [data / split, data / "coco" / split, data / "images"], "OK-VQA")
    return [
        Item(q.id, q.text, f"{q.text}\n{ending}", (folder / f"COCO_{split}_{q.image_id:012d}.jpg",))
        for q in scoring.read(data, split)
    ]


BENCHMARK = Benchmark(
    name="okvqa",
    title="OK-VQA",
    files="OpenEnded_mscoco_{split}_questions.json, mscoco_{split}_annotations.json and COCO images",
    items=items,
    score=scoring.score,
    scorer=scoring.SCORER,
    scorer_version=scoring.VERSION,
    max_new_tokens=128,
    settings=scoring.SETTINGS,
)
