"""One run as a page: figures with intervals, answers found, and everything needed to repeat it."""

from typing import Any

from emma.eval.report import markdown
from emma.eval.report.page import Page, Table, Text, interval, number, spoken, words
from emma.eval.report.published import comparable, published


def as_markdown(report: dict[str, Any]) -> str:
    """The page in markdown."""
    return markdown.render(page(report))


def page(report: dict[str, Any], failures: str | None = None) -> Page:
    """`failures` is a link to the page of wrong answers."""
    bootstrap = report["bootstrap"]
    title = report["title"]
    blocks: list[Table | Text] = [
        _figures("", {name: f for name, f in report["figures"].items() if "/" not in name}, report["metric"]),
        Text(
            f"Scores in percent unless another scale stands there. Intervals: percentile bootstrap over "
            f"{bootstrap['resampled']}, {bootstrap['resamples']} resamples, seed {bootstrap['seed']}."
        ),
    ]
    blocks += [Text(f"Note: {note}.") for note in report.get("notes", [])]
    if failures:
        blocks.append(Text("Wrong answers, with pictures, worst first", failures))
    parts = {name: f for name, f in report["figures"].items() if "/" in name}
    blocks.append(_figures("By category", parts, report["metric"]))
    blocks += _published(report)
    counts = report["answers"] | report["texts"]
    blocks.append(Table("Answers", ("answers", "number"), [(spoken(name), str(n)) for name, n in counts.items()], (1,)))
    made = [(name, words(value)) for name, value in how(report).items()]
    blocks.append(Table("How it was made", ("what", "value"), made))
    return Page(title, blocks)


def _figures(title: str, figures: dict[str, Any], primary: str) -> Table:
    rows = []
    for name, figure in figures.items():
        value = number(figure, bold=name == primary)
        rows.append((spoken(name), value, interval(figure), f"{figure['n']} {figure['unit']}"))
    return Table(title, ("figure", "score", "95 % interval", "n"), rows, (1, 2))


def _published(report: dict[str, Any]) -> list[Table | Text]:
    """What others have published of this benchmark; nothing beside the tiny world and controls."""
    found = published([report["benchmark"]]) if comparable(report) else []
    rows = [
        (entry.method, entry.metric, f"{entry.value:.2f}", "; ".join(entry.notes) or "-", entry.source)
        for entry in found
    ]
    return [Table("Published figures", ("method", "figure", "score", "note", "source"), rows, (2,), folded=True)]


def how(report: dict[str, Any]) -> dict[str, Any]:
    """Everything that a repetition needs, by what a reader calls it."""
    fingerprint, run = report["fingerprint"], report["run"]
    return {
        "model": report["model"]["folder"],
        "weights (sha256)": report["model"]["weights"],
        "training config (sha256 of train.yaml)": report["model"]["config"],
        "data": report["data"]["folder"],
        "settings": report["settings"],
        "prompts (sha256)": fingerprint["questions"],
        "template": fingerprint["template"],
        "instruction": fingerprint["instruction"],
        "controls": fingerprint["control"],
        "image mode": fingerprint["image_mode"],
        "generation": fingerprint["generation"],
        "dtype": fingerprint["dtype"],
        "batch size": run["batch_sizes"],
        "device": run["devices"],
        "seconds": run["seconds"],
        "questions per second": run["questions_per_second"],
        "scorer": f"{report['scorer']['name']}, version {report['scorer']['version']}",
        "software": report["software"],
    }
