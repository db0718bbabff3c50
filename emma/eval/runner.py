"""Ask a model every question of a benchmark, batched, sharded and resumable; then score the answers and report."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from emma.errors import EmmaError
from emma.eval.answering import Answerer
from emma.eval.answers import read_answers
from emma.eval.asking import Asking
from emma.eval.benchmark import Benchmark, find_benchmark, title
from emma.eval.controls import Controls
from emma.eval.predictions import Predictions
from emma.eval.questions import groups_by_picture, make_questions, questions_hash
from emma.eval.report import write_report
from emma.eval.settings import choose, for_part
from emma.eval.shards import Shard


def evaluate(
    benchmark: str | Benchmark,
    answerer: Answerer,
    data: str | Path,
    output: str | Path,
    *,
    settings: Mapping[str, str] | None = None,
    controls: Controls | None = None,
    batch_size: int = 16,
    max_new_tokens: int | None = None,
    images: str | Path | None = None,
    shard: Shard | None = None,
    restart: bool = False,
) -> dict[str, Any] | None:
    """Run, score and report one benchmark; returns the report, which is also `output/report.json` and `report.md`.

    Answers already in `output` are kept when they were made the same way, and refused otherwise. Where all are there,
    nothing is asked. Decoding is greedy.

    Args:
        settings: of the benchmark, where not its defaults.
        controls: counterfactuals.
        batch_size: at most so many questions at once; answers do not depend on it.
        max_new_tokens: None: the benchmark's own.
        images: image folder, where it is not in the usual place.
        shard: the share of this process. The one that finds all answers there, its own and the others', merges them
            and reports; for the others the result is None.

    Raises:
        EmmaError: files are missing; the answers there are of another fingerprint; and, after all other questions are
            answered, for those that could not be asked.
    """
    if isinstance(benchmark, str):
        benchmark = find_benchmark(benchmark)
    if batch_size < 1:
        raise EmmaError(f"batch_size={batch_size}: expected at least 1")
    data, output, controls, shard = Path(data), Path(output), controls or Controls(), shard or Shard()
    chosen = choose(benchmark.settings, settings or {}, benchmark.title)
    affecting = for_part(benchmark.settings, chosen, "questions")
    items = benchmark.items(data, Path(images) if images else None, **affecting)
    tokens = max_new_tokens or benchmark.max_new_tokens
    fingerprint = {
        "benchmark": benchmark.name,
        **answerer.fingerprint(),
        "questions": questions_hash(benchmark, items),
        "several_images": benchmark.several_images,
        "settings": affecting,
        "control": controls.as_dict(),
        "generation": {"do_sample": False, "num_beams": 1, "max_new_tokens": tokens, "stop": list(benchmark.stop)},
    }
    questions = make_questions(benchmark, items, answerer, controls)
    predictions = Predictions(output, fingerprint, shard, restart)
    share = [question for group in shard.share(groups_by_picture(questions)) for question in group]
    todo = [question for question in share if question.id not in predictions.done]
    name = title(benchmark, data, controls.words) + (f" {shard}" if shard.of > 1 else "")
    extra = {item.id: item.extra for item in items}
    asking = Asking(answerer, predictions, batch_size, tokens, benchmark.stop, extra)
    asking.ask(name, todo, total=len(share))
    if failed := asking.failed:
        raise EmmaError(
            f"{name}: {len(failed)} of {len(share)} questions could not be asked: {'; '.join(failed[:3])}"
            f"{' ...' if len(failed) > 3 else ''}. Mend them and run again: {len(predictions.done)} answers are kept"
        )
    if predictions.merge(item.id for item in items):
        return None
    score = benchmark.score(
        data, read_answers(output / "predictions.jsonl"), **for_part(benchmark.settings, chosen, "score")
    )
    pictures = {question.id: question.pictures for question in questions}
    return write_report(benchmark, score, predictions, fingerprint, data, answerer.name, controls, chosen, pictures)
