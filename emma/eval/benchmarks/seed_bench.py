"""SEED-Bench: multiple-choice questions about images and videos."""

from pathlib import Path

from emma.eval.benchmark import Benchmark, Item, existing_images
from emma.eval.prompts import LETTER, option_lines
from emma.eval.scoring import seed_bench as scoring


def items(data: Path, images: Path | None = None) -> list[Item]:
    """Question, option lines, LETTER suffix; pictures in `SEED-Bench-image`, and a video's middle frame in
    `SEED-Bench-video-image` as `{question_id}.png`."""
    folder = existing_images([images or data / "SEED-Bench-image"], "SEED-Bench")
    rows = []
    for row in scoring.read(data):
        prompt = f"{row.question}\n{option_lines(tuple(row.options.values()))}\n{LETTER}"
        frame = data / "SEED-Bench-video-image" / f"{row.id}.png"
        picture = frame if row.data_type == "video" else folder / row.media
        rows.append(Item(row.id, row.question, prompt, (picture,), row.kind))
    return rows


BENCHMARK = Benchmark(
    name="seed_bench",
    title="SEED-Bench",
    files="SEED-Bench.json and the folders SEED-Bench-image, SEED-Bench-video-image",
    items=items,
    score=scoring.score,
    scorer=scoring.SCORER,
    scorer_version=scoring.VERSION,
    max_new_tokens=128,
    settings=scoring.SETTINGS,
)
