"""One table for several runs: figures, differences of controls, models side by side with published figures."""

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from emma.errors import EmmaError
from emma.eval.predictions import write_json
from emma.eval.report import html, markdown
from emma.eval.report.compare import compare
from emma.eval.report.page import Cell, Page, Table, Text, interval, number, spoken, words
from emma.eval.report.published import Published, comparable, published
from emma.eval.report.record import Run

HEADER = ("benchmark", "model", "figure", "score", "95 % interval", "n")


def as_table(reports: list[dict[str, Any]]) -> str:
    """The primary figures of several reports, in markdown."""
    return markdown.table(Table("", HEADER, [_cells(report) for report in reports], (3, 4)))


def _cells(report: dict[str, Any]) -> tuple[str | Cell, ...]:
    figure = report["figures"][report["metric"]]
    return (
        report["title"],
        label(report),
        spoken(report["metric"]),
        number(figure),
        interval(figure),
        f"{figure['n']} {figure['unit']}",
    )


def label(report: dict[str, Any]) -> str:
    """The model as a table names it: its folder or name, and the first letters of its weights' hash."""
    weights = report["model"]["weights"]
    return report["model"]["folder"] + (f" ({weights[:12]})" if weights else "")


def summary(runs: Sequence[Run]) -> dict[str, Any]:
    """All runs as JSON: `runs` with a row each, and `published`, the figures of the benchmarks that may stand beside
    them (none for the tiny world and for controls)."""
    rows = []
    for run in runs:
        report = run.report
        rows.append(
            {
                "title": report["title"],
                "benchmark": report["benchmark"],
                "model": report["model"],
                "figure": report["metric"],
                **report["figures"][report["metric"]],
                "against_uncontrolled": _against_uncontrolled(run, runs),
                "scorer": report["scorer"],
                "settings": report["settings"],
                "prompts": report["fingerprint"]["questions"],
                "commit": report["software"]["commit"],
                "uncommitted_changes": report["software"]["dirty"],
                "versions": report["software"]["versions"],
                "batch_sizes": report["run"]["batch_sizes"],
                "devices": report["run"]["devices"],
                "dtype": report["fingerprint"]["dtype"],
                "controls": report["fingerprint"]["control"],
                "generation": report["fingerprint"]["generation"],
                "world": report["data"]["world"],
                "comparable_with_published": comparable(report),
                "notes": report.get("notes", []),
                "figures": report["figures"],
                "folder": str(run.folder),
            }
        )
    beside = published(row["benchmark"] for row in rows if row["comparable_with_published"])
    return {"runs": rows, "published": [entry.as_dict() for entry in beside]}


def _against_uncontrolled(run: Run, runs: Sequence[Run]) -> dict[str, Any] | None:
    """For a run under a control: what the control changes, in pairs, against the same model's run without any; None
    for other runs, and where that run is not among `runs`."""
    if not _controlled(run):
        return None
    for other in runs:
        if not _controlled(other) and all(_same(run, other, *keys) for keys in _SAME):
            try:
                return compare(other, run)
            except EmmaError as error:
                return {"unavailable": str(error)}
    return None


_SAME = (
    ("benchmark",),
    ("data", "world"),
    ("model", "weights"),
    ("settings",),
    ("fingerprint", "questions"),
    ("fingerprint", "dtype"),
    ("fingerprint", "generation"),
)


def _controlled(run: Run) -> bool:
    return any(value != "none" for value in run.report["fingerprint"]["control"].values())


def _same(run: Run, other: Run, *keys: str) -> bool:
    a: Any = run.report
    b: Any = other.report
    for key in keys:
        a, b = a[key], b[key]
    return a == b


def page(runs: Sequence[Run], made: dict[str, Any], at: Path | None = None) -> Page:
    """The summary `made` of `runs` for readers; `at` is the folder that the page will lie in, for links to the runs'
    own pages (None: no links)."""
    rows = made["runs"]
    models = list(dict.fromkeys(label(run.report) for run in runs))
    differences = any(row["against_uncontrolled"] for row in rows)
    header = (*HEADER, "without the control", "difference", "p") if differences else HEADER
    lines = []
    for run, row in zip(runs, rows, strict=True):
        first, *rest = _cells(run.report)
        line = (Cell(str(first), link=_link(run.folder, at)), *rest)
        lines.append((*line, *_difference_cells(row)) if differences else line)
    if len(models) == 1:  # the page's title names it
        header, lines = (header[0], *header[2:]), [(line[0], *line[2:]) for line in lines]
    numbers = ("score", "95 % interval", "without the control", "difference", "p")
    blocks: list[Table | Text] = [
        Table("Figures", header, lines, tuple(i for i, name in enumerate(header) if name in numbers)),
        Text("Scores in percent unless another scale stands there; 95 % intervals from the bootstrap."),
    ]
    if differences:
        blocks.append(
            Text(
                "Difference: the run under a control minus the same model's run without, with the 95 % interval of the "
                "paired bootstrap."
            )
        )
    for row in rows:
        why = (row["against_uncontrolled"] or {}).get("unavailable")
        blocks += [Text(f"{row['title']}: no difference, because {why}.")] if why else []
    for note in dict.fromkeys(note for row in rows for note in row["notes"]):
        about = dict.fromkeys(row["title"] for row in rows if note in row["notes"])
        blocks.append(Text(f"{'; '.join(about)}: {note}."))
    blocks += _side_by_side(rows, [Published(**entry) for entry in made["published"]])
    blocks += _categories(rows)
    blocks.append(_how(rows))
    return Page(f"Evaluation of {models[0]}" if len(models) == 1 else f"Evaluation of {len(models)} models", blocks)


def _link(folder: Path, at: Path | None) -> str | None:
    if at is None or not (folder / "report.html").is_file():
        return None
    return quote(Path(os.path.relpath(folder / "report.html", at)).as_posix())


def _difference_cells(row: dict[str, Any]) -> tuple[str, ...]:
    """The row's own figure without the control, and what the control changes."""
    entry = ((row["against_uncontrolled"] or {}).get("figures") or {}).get(row["figure"])
    if entry is None:
        return "-", "-", "-"
    value = f"{entry['difference']:+.2f}"
    if "p" not in entry:
        return f"{entry['first']:.2f}", value, "-"
    low, high = entry["interval"]
    return f"{entry['first']:.2f}", f"{value} ({low:.2f} to {high:.2f})", f"{entry['p']:.3f}"


def _side_by_side(rows: list[dict[str, Any]], beside: list[Published]) -> list[Table | Text]:
    """Models and methods below each other, benchmarks across: official sets with published figures, and the tiny
    world's sets apart."""
    official = [row for row in rows if row["comparable_with_published"]]
    world = [row for row in rows if row["world"] and all(value == "none" for value in row["controls"].values())]
    blocks: list[Table | Text] = []
    if official and (beside or _models(official) > 1):
        blocks += _beside_published(official, beside)
    if _models(world) > 1:
        columns = _columns(world)
        blocks.append(_grid("Models side by side, the tiny world's sets", list(_lines(world, columns)), columns))
    return blocks


def _models(rows: list[dict[str, Any]]) -> int:
    return len({label(row) for row in rows})


Column = tuple[str, str]
"""(benchmark, figure)"""


def _columns(rows: list[dict[str, Any]], beside: Iterable[Published] = ()) -> dict[Column, str]:
    """Columns with their headings; a published figure that is not the primary one has a column of its own."""
    titles = {row["benchmark"]: row["title"] for row in rows}
    primary = {row["benchmark"]: row["figure"] for row in rows}
    columns = {(row["benchmark"], row["figure"]): f"{row['title']}: {spoken(row['figure'])}" for row in rows}
    for entry in beside:
        figure = entry.figure or primary[entry.benchmark]
        columns.setdefault((entry.benchmark, figure), f"{titles[entry.benchmark]}: {spoken(figure)}")
    return columns


def _lines(rows: list[dict[str, Any]], columns: Iterable[Column]) -> Iterator[tuple[str | Cell, ...]]:
    for name in dict.fromkeys(map(label, rows)):
        own = [row for row in rows if label(row) == name]
        yield Cell(name, bold=True), *(_values(own, column) for column in columns)


def _grid(title: str, lines: Sequence[tuple[str | Cell, ...]], columns: dict[Column, str]) -> Table:
    return Table(title, ("model", *columns.values()), lines, tuple(range(1, 1 + len(columns))))


def _values(rows: list[dict[str, Any]], column: Column) -> str:
    """A model's figure with its interval; several where it was run under several settings."""
    benchmark, name = column
    found = [row["figures"][name] for row in rows if row["benchmark"] == benchmark and name in row["figures"]]
    shown = (number(f).text + (" [{:.1f}, {:.1f}]".format(*f["interval"]) if f["interval"] else "") for f in found)
    return "; ".join(shown) or "-"


def _beside_published(rows: list[dict[str, Any]], beside: list[Published]) -> list[Table | Text]:
    columns = _columns(rows, beside)
    primary = {row["benchmark"]: row["figure"] for row in rows}
    lines = list(_lines(rows, columns))
    notes = list(dict.fromkeys((entry.benchmark, note) for entry in beside for note in entry.notes))
    for method in dict.fromkeys(entry.method for entry in beside):
        own = {(e.benchmark, e.figure or primary[e.benchmark]): e for e in beside if e.method == method}
        cells = []
        for column in columns:
            entry = own.get(column)
            marks = "".join(f" [{1 + notes.index((entry.benchmark, note))}]" for note in entry.notes) if entry else ""
            cells.append(f"{entry.value:.2f}{marks}" if entry else "-")
        lines.append((method, *cells))
    title = "Models side by side with published figures" if beside else "Models side by side"
    blocks: list[Table | Text] = [_grid(title, lines, columns)]
    if beside:
        sources = "; ".join(dict.fromkeys(entry.source for entry in beside))
        blocks.append(Text(f"Rows in bold are measured here, the others are published: {sources}."))
    titles = {row["benchmark"]: row["title"] for row in rows}
    return blocks + [Text(f"[{n}] {titles[benchmark]}: {note}.") for n, (benchmark, note) in enumerate(notes, 1)]


def _categories(rows: list[dict[str, Any]]) -> list[Table | Text]:
    """One folded table a benchmark: categories below each other, runs across."""
    blocks: list[Table | Text] = []
    for key in dict.fromkeys((row["benchmark"], row["world"]) for row in rows):
        own = [row for row in rows if (row["benchmark"], row["world"]) == key]
        lines: list[tuple[str | Cell, ...]] = []
        for name in dict.fromkeys(name for row in own for name in row["figures"] if "/" in name):
            cells = (_values([row], (row["benchmark"], name)) for row in own)
            counted = next(row["figures"][name] for row in own if name in row["figures"])
            lines.append((spoken(name), *cells, f"{counted['n']} {counted['unit']}"))
        runs = (f"{row['title']}: {label(row)}" if _models(rows) > 1 else row["title"] for row in own)
        header = ("category", *runs, "n")
        title = f"{min((row['title'] for row in own), key=len)} by category"
        blocks.append(Table(title, header, lines, tuple(range(1, len(header) - 1)), folded=True))
    return blocks


def _how(rows: list[dict[str, Any]]) -> Table:
    header = (
        "benchmark", "model", "scorer", "settings", "controls", "prompts", "commit", "versions", "batch", "dtype",
    )  # fmt: skip
    lines: list[tuple[str | Cell, ...]] = []
    for row in rows:
        commit = (row["commit"] or "not known")[:12] + (" with changes" if row["uncommitted_changes"] else "")
        lines.append(
            (
                row["title"],
                label(row),
                f"{row['scorer']['name']}, version {row['scorer']['version']}",
                words(row["settings"]),
                words(row["controls"]),
                row["prompts"][:12],
                commit,
                words({name: version for name, version in row["versions"].items() if version}),
                words(row["batch_sizes"]),
                words(row["dtype"]),
            )
        )
    return Table("How it was made", header, lines, folded=True)


def write(runs: Sequence[Run], stem: Path) -> Table:
    """`STEM.json`, `STEM.md` and `STEM.html`; returns the first table, without links.

    Raises:
        EmmaError: the folder cannot be written.
    """
    made = summary(runs)
    shown = page(runs, made, stem.parent)
    try:
        stem.parent.mkdir(parents=True, exist_ok=True)
        write_json(stem.with_suffix(".json"), made)
        stem.with_suffix(".md").write_text(markdown.render(shown), encoding="utf-8")
        stem.with_suffix(".html").write_text(html.render(shown), encoding="utf-8")
    except OSError as error:
        raise EmmaError(f"cannot write {stem}.json, .md and .html: {error.strerror}") from error
    return page(runs, made).figures
