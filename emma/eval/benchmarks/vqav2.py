"""VQAv2: open questions about COCO images."""

from pathlib import Path

from emma.eval.benchmark import Benchmark, Item, existing_images
from emma.eval.prompts import SHORT
from emma.eval.scoring import vqav2 as scoring


def items(data: Path, images: Path | None = None, split: str = "val2014") -> list[Item]:
    """Question and SHORT suffix; images in COCO's folder of the split, or in `images`."""
    of_split = "test2015" if split == "test-dev2015" else split
    folder = existing_images(
        [images] if images else [data / of_split, data / "coco" / of_split, data / "images"], "VQAv2"
    )
    return [
        Item(q.id, q.text, f"{q.text}\n{SHORT}", (folder / f"COCO_{of_split}_{q.image_id:012d}.jpg",))
        for q in scoring.read(data, split)
    ]


BENCHMARK = Benchmark(
    name="vqav2",
    title="VQAv2",
    files="v2_OpenEnded_mscoco_{split}_questions.json, v2_mscoco_{split}_annotations.json and COCO images",
    items=items,
    score=scoring.score,
    scorer=scoring.SCORER,
    scorer_version=scoring.VERSION,
    max_new_tokens=128,
    settings=scoring.SETTINGS,
)
