"""TextVQA: questions that need reading the text in the image."""

from pathlib import Path

from emma.errors import EmmaError
from emma.eval.benchmark import Benchmark, Item, existing_images
from emma.eval.prompts import SHORT
from emma.eval.scoring import textvqa as scoring


def items(data: Path, images: Path | None = None, ocr: str = "tokens") -> list[Item]:
    """LLaVA's prompt with reference OCR tokens, or question and SHORT suffix; images in `train_images`."""
    folder = existing_images([images] if images else [data / "train_images", data / "images"], "TextVQA")
    prompts = scoring.prompts(data) if ocr == "tokens" else {}
    rows = []
    for row in scoring.read(data):
        prompt = f"{row.question}\n{SHORT}"
        if ocr == "tokens":
            if (row.image, row.question.lower()) not in prompts:
                raise EmmaError(f"TextVQA question {row.id} is not in LLaVA's file of OCR tokens; ask with ocr=none")
            prompt = prompts[row.image, row.question.lower()]
        rows.append(Item(row.id, row.question, prompt, (folder / f"{row.image}.jpg",)))
    return rows


BENCHMARK = Benchmark(
    name="textvqa",
    title="TextVQA",
    files="TextVQA_0.5.1_val.json, LLaVA's llava_textvqa_val_v051_ocr.jsonl and the folder train_images",
    items=items,
    score=scoring.score,
    scorer=scoring.SCORER,
    scorer_version=scoring.VERSION,
    max_new_tokens=128,
    settings=scoring.SETTINGS,
)
