"""Several reports side by side: one table, published figures beside it, controls and pairs of runs compared."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from emma.errors import EmmaError
from emma.eval.compare import Comparison, compare
from emma.eval.html import interval, page, table, value
from emma.eval.published import Published, published_figures

Report = dict[str, Any]
HEAD = ("benchmark", "model", "figure", "value", "95 % interval", "n")


def cells(report: Report) -> tuple[str, ...]:
    """A report's row: its primary figure."""
    first = report["figures"][report["metric"]]
    weights = report["model"]["weights"]
    model = f"{report['model']['folder']}" + (f" ({weights[:12]})" if weights else "")
    metric = report["metric"].replace("_", " ")
    return report["title"], model, metric, value(first), interval(first), f"{report['n']} {report['unit']}"


def as_table(reports: Sequence[Report]) -> str:
    """The primary figures of several reports side by side, in markdown."""
    lines = [f"| {' | '.join(HEAD)} |", "| --- | --- | --- | ---: | ---: | ---: |"]
    lines += [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells(report))} |" for report in reports]
    return "\n".join(lines) + "\n"


def is_controlled(report: Report) -> bool:
    """Whether something was taken from the model in this run."""
    return any(kind != "none" for kind in report["fingerprint"]["control"].values())


def published_beside(reports: Sequence[Report]) -> list[tuple[str, Published]]:
    """Published figures for the benchmarks of real, uncontrolled runs: the world's results never stand beside them."""
    real = [r for r in reports if not r["data"]["world"] and not is_controlled(r)]
    titles = {report["benchmark"]: report["title"] for report in real}
    return [(title, figure) for name, title in titles.items() for figure in published_figures(name)]


def read_scores(report: Report) -> dict[str, float]:
    """Credits by question id that a run kept beside its report.

    Raises:
        EmmaError: there are none: the run is older, or its scorer gives no credit to single questions.
    """
    file = Path(report["path"]).with_name("scores.jsonl") if "path" in report else None
    if file is None or not file.is_file():
        raise EmmaError(f"{report.get('path', report['title'])}: no scores.jsonl beside it; run or score it again")
    rows = (json.loads(line) for line in file.read_text(encoding="utf-8").splitlines())
    return {row["id"]: row["credit"] for row in rows}


def compare_reports(first: Report, second: Report) -> Comparison:
    """Two runs of one benchmark in pairs of questions.

    Raises:
        EmmaError: different benchmarks, other questions, or no credits.
    """
    for key in ("benchmark", "data"):
        if first[key] != second[key]:
            raise EmmaError(
                f"the runs differ in {key} ({first[key]} and {second[key]}): they cannot be compared in pairs"
            )
    return compare(read_scores(first), read_scores(second))


def controls_beside(reports: Sequence[Report]) -> list[tuple[str, Comparison]]:
    """For every controlled run, its difference to the uncontrolled run of the same model, benchmark and settings."""
    found = []
    for control in filter(is_controlled, reports):
        for plain in reports:
            same = all(plain[key] == control[key] for key in ("benchmark", "data", "settings"))
            if same and not is_controlled(plain) and plain["model"] == control["model"]:
                found.append((control["title"], compare_reports(plain, control)))
    return found


def as_markdown(title: str, reports: Sequence[Report], missing: Sequence[str] = ()) -> str:
    """The whole page: table, controls, published figures, what was not run."""
    lines = [f"# {title}", "", as_table(reports)]
    if controls := controls_beside(reports):
        lines += ["## Controls, against the run without", ""]
        lines += [f"- {name}: {comparison.sentence}" for name, comparison in controls] + [""]
    if published := published_beside(reports):
        lines += ["## Published figures", "", "| benchmark | method | metric | value | note | source |"]
        lines += ["| --- | --- | --- | ---: | --- | --- |"]
        lines += [f"| {n} | {p.method} | {p.metric} | {p.value:g} | {p.note} | {p.source} |" for n, p in published] + [
            ""
        ]
    if missing:
        lines += ["## Not run", "", *(f"- {line}" for line in missing), ""]
    return "\n".join(lines)


def as_html(title: str, reports: Sequence[Report], missing: Sequence[str] = ()) -> str:
    """The same as one self-contained page."""
    body = table(HEAD, [cells(report) for report in reports], (3, 4, 5))
    if controls := controls_beside(reports):
        rows = [(name, comparison.sentence) for name, comparison in controls]
        body += "<h2>Controls, against the run without</h2>" + table(("run", "difference"), rows)
    if published := published_beside(reports):
        lines = [(n, p.method, p.metric, f"{p.value:g}", p.note, p.source) for n, p in published]
        head = ("benchmark", "method", "metric", "value", "note", "source")
        body += "<h2>Published figures</h2>" + table(head, lines, (3,))
    if missing:
        body += "<h2>Not run</h2>" + table(("",), [(line,) for line in missing])
    body += "<p class=soft>Intervals: percentile bootstrap, seeded. Each run's own page says how it was made.</p>"
    return page(title, body)


def find_reports(runs: Sequence[str | Path]) -> list[Report]:
    """The reports named by `runs`: a report.json, a folder that has one, or a folder somewhere above some."""
    reports = []
    for run in map(Path, runs):
        paths = [run] if run.is_file() else sorted(run.rglob("report.json"))
        if not paths:
            raise EmmaError(f"no report.json in {run}; make one with: python -m emma.eval run BENCHMARK --model FOLDER")
        for path in paths:
            try:
                report = json.loads(path.read_text(encoding="utf-8"))
                if "reports" in report:  # the page of a whole table
                    continue
                cells(report)
            except (ValueError, KeyError, TypeError) as error:
                raise EmmaError(f"{path} is not a report of emma.eval ({error!r})") from error
            reports.append(report | {"path": str(path)})
    return reports
