"""FOIL-COCO: which of two captions fits the image?"""

from pathlib import Path

from emma.eval.benchmark import Benchmark, Item, existing_images
from emma.eval.prompts import LETTER
from emma.eval.scoring import foil as scoring

QUESTION = "Which of the following captions better fits the image: "


def items(data: Path, images: Path | None = None, subset: str = "all") -> list[Item]:
    """The released EMMA's wording, spaces included; the order of the captions is seeded and stored with the answer."""
    folder = existing_images([images] if images else [data / "val2014", data / "images"], "FOIL")
    rows = []
    for pair in scoring.read(data, subset):
        a, b = pair.shown
        prompt = f"{QUESTION}\n (A){a} \n (B){b} \n{LETTER}"
        picture = folder / f"COCO_val2014_{pair.image_id:012d}.jpg"
        rows.append(Item(pair.id, QUESTION, prompt, (picture,), None, {"option_a": a, "option_b": b}))
    return rows


BENCHMARK = Benchmark(
    name="foil",
    title="FOIL",
    files="foilv1.0_test_2017.json and COCO's val2014 images",
    items=items,
    score=scoring.score,
    scorer=scoring.SCORER,
    scorer_version=scoring.VERSION,
    max_new_tokens=1024,
    settings=scoring.SETTINGS,
)
