"""LLaVA-Bench (In-the-Wild): open questions graded by a judge."""

from pathlib import Path

from emma.eval.benchmark import Benchmark, Item, existing_images
from emma.eval.scoring import llava_bench_wild as scoring


def items(data: Path, images: Path | None = None) -> list[Item]:
    """The text alone; images in `images`."""
    folder = existing_images([images or data / "images"], "LLaVA-Bench")
    return [Item(row.id, row.text, row.text, (folder / row.image,), row.category) for row in scoring.read(data)]


BENCHMARK = Benchmark(
    name="llava_bench_wild",
    title="LLaVA-Bench (In-the-Wild)",
    files="questions.jsonl, context.jsonl, answers_gpt4.jsonl and the folder images",
    items=items,
    score=scoring.score,
    scorer=scoring.SCORER,
    scorer_version=scoring.VERSION,
    max_new_tokens=1024,
    settings=scoring.SETTINGS,
    hub="liuhaotian/llava-bench-in-the-wild",
)
