"""The record of a run: `report.json`, its forms for readers beside it, and finding them again."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emma.errors import EmmaError
from emma.eval.answers import read_answers
from emma.eval.benchmark import Benchmark, is_world, title
from emma.eval.controls import Controls
from emma.eval.pictures import Picture
from emma.eval.predictions import Predictions, write_json
from emma.eval.report import failures, html, markdown, single
from emma.eval.scoring.score import Score
from emma.eval.settings import choose, for_part


@dataclass(frozen=True)
class Run:
    """A run that was reported: its folder, with the answers, and the content of `report.json`."""

    folder: Path
    report: dict[str, Any]


def score_report(
    benchmark: Benchmark, data: Path, answers: Path, settings: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Score an answers file: reads `data` and `answers` only, no model and no image."""
    chosen = choose(benchmark.settings, settings or {}, benchmark.title)
    score = benchmark.score(data, read_answers(answers), **for_part(benchmark.settings, chosen, "score"))
    head = {"benchmark": benchmark.name, "title": title(benchmark, data)}
    return head | _scored(benchmark, score) | {"settings": for_part(benchmark.settings, chosen, "score")}


def _scored(benchmark: Benchmark, score: Score) -> dict[str, Any]:
    return score.as_dict() | {"scorer": {"name": benchmark.scorer, "version": benchmark.scorer_version}}


def write_report(
    benchmark: Benchmark,
    score: Score,
    predictions: Predictions,
    fingerprint: dict[str, Any],
    data: Path,
    model: str,
    controls: Controls,
    settings: Mapping[str, str],
    pictures: Mapping[str, Sequence[Picture]],
) -> dict[str, Any]:
    """Write `report.json`, `report.md`, `report.html` and, where the scorer tells each question's outcome,
    `failures.html` beside the answers; returns the first. `model` is its folder or name, `settings` all that were
    chosen of the benchmark's, `pictures` what the model saw of each question."""
    from emma.checkpoints import provenance

    timings = predictions.timings()
    seconds = sum(timing["seconds"] for timing in timings)
    timed = sum(timing["questions"] for timing in timings)
    config = Path(model) / "train.yaml"
    report: dict[str, Any] = {"benchmark": benchmark.name, "title": title(benchmark, data, controls.words)}
    report |= _scored(benchmark, score)
    report |= {
        "texts": {
            "empty": sum(not row["text"] for row in predictions.done.values()),
            "cut_by_max_new_tokens": sum(not row["finished"] for row in predictions.done.values()),
            "instruction_cut": sum(row["instruction_cut"] > 0 for row in predictions.done.values()),
        },
        "data": {"folder": str(data), "world": is_world(data)},
        "model": {
            "folder": model,
            "weights": fingerprint["weights"],
            "config": hashlib.sha256(config.read_bytes()).hexdigest() if config.is_file() else None,
        },
        "settings": dict(settings),
        "fingerprint": fingerprint,
        "run": {
            "batch_sizes": sorted({timing["batch_size"] for timing in timings}),
            "devices": sorted({timing["device"] for timing in timings}),
            "seconds": round(seconds, 1),
            "questions_per_second": round(timed / seconds, 2) if seconds else None,
        },
        "software": provenance.collect(),
    }
    folder = predictions.folder
    has_failures = failures.write(folder / "failures.html", report, score, pictures, predictions.done)
    page = single.page(report, "failures.html" if has_failures else None)
    (folder / "report.html").write_text(html.render(page), encoding="utf-8")
    (folder / "report.md").write_text(markdown.render(page), encoding="utf-8")
    write_json(folder / "report.json", report)
    return report


def find_runs(places: Sequence[str | Path]) -> list[Run]:
    """The runs named by `places`: a report.json, a folder that has one, or a folder somewhere above some.

    Raises:
        EmmaError: there is none, or it is no report.
    """
    runs = []
    for place in map(Path, places):
        paths = [place] if place.is_file() else sorted(place.rglob("report.json"))
        if not paths:
            raise EmmaError(
                f"no report.json in {place}; make one with: python -m emma.eval run BENCHMARK --model FOLDER"
            )
        for path in paths:
            try:
                report = json.loads(path.read_text(encoding="utf-8"))
                single.page(report)  # fails where anything is missing
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise EmmaError(f"{path} is not a report of emma.eval ({error!r})") from error
            runs.append(Run(path.parent, report))
    return runs


def find_reports(places: Sequence[str | Path]) -> list[dict[str, Any]]:
    """The contents of `find_runs`."""
    return [run.report for run in find_runs(places)]
