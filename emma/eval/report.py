"""A run's report: what was measured, how sure it is and how it was made, as JSON, markdown and HTML."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from emma.eval import html
from emma.eval.answers import read_answers
from emma.eval.benchmark import Benchmark, is_world, title
from emma.eval.controls import Controls
from emma.eval.pictures import Picture
from emma.eval.predictions import Predictions, write_json
from emma.eval.scoring.score import Score
from emma.eval.settings import choose, for_part


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
    """Write `report.json`, `.md` and `.html`, `failures.html` and `scores.jsonl` beside the answers; returns the first.

    Args:
        model: its folder or name.
        settings: all that were chosen of the benchmark's.
        pictures: of each question, for the page of failures.
    """
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
    write_json(folder / "report.json", report)
    (folder / "report.md").write_text(as_markdown(report), encoding="utf-8")
    lines = (json.dumps({"id": id, "credit": credit}) + "\n" for id, credit in score.credits.items())
    (folder / "scores.jsonl").write_text("".join(lines), encoding="utf-8")
    html.write(folder / "report.html", html.report_page(report, how_made(report), failures=bool(score.credits)))
    if score.credits:
        page = html.failures_page(report["title"], predictions.done, score.credits, score.expected, pictures)
        html.write(folder / "failures.html", page)
    return report


def how_made(report: Mapping[str, Any]) -> dict[str, str]:
    """Everything that is needed to repeat a run, by name."""
    fingerprint, run = report["fingerprint"], report["run"]
    facts = {
        "model": report["model"]["folder"],
        "weights (sha256)": report["model"]["weights"],
        "training config (sha256 of train.yaml)": report["model"]["config"],
        "data": report["data"]["folder"],
        "settings": report["settings"] or "none",
        "prompts (sha256)": fingerprint["questions"],
        "template": fingerprint["template"],
        "instruction": fingerprint["instruction"],
        "controls": fingerprint["control"],
        "image mode": fingerprint["image_mode"],
        "generation": fingerprint["generation"],
        "dtype": fingerprint["dtype"],
        "batch size": ", ".join(map(str, run["batch_sizes"])),
        "device": ", ".join(run["devices"]),
        "seconds": run["seconds"],
        "questions per second": run["questions_per_second"],
        "scorer": f"{report['scorer']['name']}, version {report['scorer']['version']}",
        "software": report["software"],
    }
    return {name: _cell(value) for name, value in facts.items()}


def as_markdown(report: dict[str, Any]) -> str:
    """One report as a page: figures with intervals, answers found, and everything needed to repeat it."""
    counts = report["answers"] | report["texts"]
    lines = [f"# {report['title']}", "", "| figure | value | 95 % interval | n |", "| --- | ---: | ---: | ---: |"]
    for name, figure in report["figures"].items():
        shown = name.replace("_", " ")
        shown = f"**{shown}**" if name == report["metric"] else shown
        lines.append(f"| {shown} | {html.value(figure)} | {_interval(figure)} | {figure['n']} {figure['unit']} |")
    bootstrap = report["bootstrap"]
    lines += [
        "",
        f"Intervals: percentile bootstrap over {bootstrap['resampled']}, {bootstrap['resamples']} resamples, "
        f"seed {bootstrap['seed']}.",
        "",
        *(f"Note: {note}." for note in report.get("notes", ())),
        "",
        "| answers | |",
        "| --- | ---: |",
        *(f"| {name.replace('_', ' ')} | {count} |" for name, count in counts.items()),
        "",
        "| how it was made | |",
        "| --- | --- |",
        *(f"| {name} | {value} |" for name, value in how_made(report).items()),
    ]
    return "\n".join(lines) + "\n"


def _interval(figure: dict[str, Any]) -> str:
    return "{:.2f} to {:.2f}".format(*figure["interval"]) if figure["interval"] else "-"


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_cell(inner)}" for key, inner in value.items())
    return "not known" if value is None else str(value).replace("|", "\\|")
