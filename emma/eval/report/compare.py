"""Two runs on the same questions: both are scored anew by one scorer, and the sentence says what a difference means."""

from pathlib import Path
from typing import Any

from emma.errors import EmmaError
from emma.eval.answers import read_answers
from emma.eval.benchmark import find_benchmark
from emma.eval.report.page import Cell, Page, Table, Text, spoken
from emma.eval.report.record import Run, find_runs
from emma.eval.scoring.paired import Difference, difference
from emma.eval.scoring.score import Figure, Score
from emma.eval.settings import for_part

LEVEL = 0.05
SHOWN = 50  # ids of questions on a page; all stand in the JSON form


def find_run(place: str | Path) -> Run:
    """The one run that `place` names: a report.json or its folder.

    Raises:
        EmmaError: none, or several.
    """
    path = Path(place)
    runs = find_runs([path / "report.json" if (path / "report.json").is_file() else path])
    if len(runs) > 1:
        names = ", ".join(str(run.folder) for run in runs[:3])
        raise EmmaError(f"{place} holds {len(runs)} runs ({names} ...): name the folder of one")
    return runs[0]


def compare(first: Run, second: Run, data: str | Path | None = None) -> dict[str, Any]:
    """The comparison as JSON: `sentence` says what it means, `figures` all differences, second minus first.

    Args:
        data: the benchmark's files, where they are no longer where the runs found them.

    Raises:
        EmmaError: other questions, another benchmark, scored by other settings, or the files are gone.
    """
    _check(first, second)
    scores = [_score(run, data) for run in (first, second)]
    figures = {}
    for name, before in scores[0].figures.items():
        after = scores[1].figures.get(name)
        if after is not None and "/" not in name:
            figures[name] = _entry(before, after)
    primary = scores[0].primary
    # AMBER's score is a mean of two figures and carries no counts: then the first that can be compared stands for it.
    main = next((n for n in (primary, *figures) if n in figures and "p" in figures[n]), primary)
    comparison = {
        "benchmark": first.report["benchmark"],
        "title": [first.report["title"], second.report["title"]],
        "model": [first.report["model"], second.report["model"]],
        "folder": [str(first.folder), str(second.folder)],
        "figure": main,
        **figures[main],
        "resampled": scores[0].resampled,
        "same_prompts": first.report["fingerprint"]["questions"] == second.report["fingerprint"]["questions"],
        "figures": figures,
        "changed": _changed(*scores),
    }
    return comparison | {"sentence": sentence(comparison)}


def _check(first: Run, second: Run) -> None:
    a, b = first.report, second.report
    if a["benchmark"] != b["benchmark"] or a["data"]["world"] != b["data"]["world"]:
        raise EmmaError(
            f"{first.folder} is about {a['title']} and {second.folder} about {b['title']}: two runs are compared on "
            "the same questions"
        )
    if a["fingerprint"]["questions"] != b["fingerprint"]["questions"] and not _same_folder(a, b):
        raise EmmaError(
            f"{first.folder} and {second.folder} were asked other questions (their hashes differ, and so do their "
            f"folders {a['data']['folder']} and {b['data']['folder']})"
        )
    settings = find_benchmark(a["benchmark"]).settings
    for setting in settings:
        values = [report["settings"].get(setting.name, setting.default) for report in (a, b)]
        if "score" in setting.affects and values[0] != values[1]:
            raise EmmaError(
                f"{first.folder} was scored with {setting.name}={values[0]} and {second.folder} with "
                f"{setting.name}={values[1]}: run one of them again with the other's setting (its answers are kept)"
            )


def _same_folder(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return Path(a["data"]["folder"]).resolve() == Path(b["data"]["folder"]).resolve()


def _score(run: Run, data: str | Path | None) -> Score:
    report = run.report
    folder = Path(data or report["data"]["folder"])
    if not folder.is_dir():
        raise EmmaError(
            f"{run.folder}: its questions are not in {folder} any more, and both runs are scored anew; name the folder "
            "with --data DIR"
        )
    if str(report["settings"].get("judge", "none")).startswith("http"):
        raise EmmaError(f"{report['title']}: a judge would grade all answers again; give its reviews as a file")
    benchmark = find_benchmark(report["benchmark"])
    answers = read_answers(run.folder / "predictions.jsonl")
    score = benchmark.score(folder, answers, **for_part(benchmark.settings, report["settings"], "score"))
    if score.answers["missing"]:
        raise EmmaError(
            f"{run.folder}: {score.answers['missing']} of {score.answers['expected']} questions have no answer; finish "
            "the run first"
        )
    return score


def _entry(before: Figure, after: Figure) -> dict[str, Any]:
    entry = {"first": before.value, "second": after.value, "scale": before.scale, "n": before.n, "unit": before.unit}
    found = difference(before, after)
    if found is None:
        return entry | {"difference": after.value - before.value}
    return entry | _as_dict(found)


def _as_dict(found: Difference) -> dict[str, Any]:
    return {
        "difference": found.value,
        "interval": found.interval,
        "p": found.p,
        "test": found.test,
        "units": found.units,
        "only_first": found.only_first,
        "only_second": found.only_second,
    }


def _changed(first: Score, second: Score) -> dict[str, list[str]] | None:
    """Ids of the questions with more credit in one run than in the other; None where the scorer gives none."""
    if not first.credits or not second.credits:
        return None
    both = {id: (credit, second.credits[id]) for id, credit in first.credits.items()}
    return {
        "better_in_first": [id for id, (a, b) in both.items() if a > b],
        "better_in_second": [id for id, (a, b) in both.items() if a < b],
    }


def sentence(comparison: dict[str, Any]) -> str:
    """Whether the difference of the main figure means anything, with n, interval and p."""
    name, scale = spoken(comparison["figure"]), comparison["scale"]
    points = "points" if scale == "percent" else scale
    value = comparison["difference"]
    direction = "above" if value > 0 else "below"
    head = (
        f"{comparison['title'][1]}: {name} of the second run is {comparison['second']:.2f}, "
        + (f"{abs(value):.2f} {points} {direction}" if value else "equal to")
        + f" that of the first, {comparison['first']:.2f} (n = {comparison['n']} {comparison['unit']}"
    )
    if "p" not in comparison:
        return head + "). This figure does not carry what a paired test needs, so nothing is said about chance."
    low, high = comparison["interval"]
    by = f"the paired bootstrap over {comparison['resampled']}"
    head += f"; 95 % interval of the difference {low:.2f} to {high:.2f}"
    if comparison["test"] == "McNemar":
        head += (
            f", by {by}; p = {_p(comparison['p'])}, by McNemar's exact test: {comparison['only_second']} right in the "
            f"second alone, {comparison['only_first']} in the first alone)"
        )
    else:
        head += f", p = {_p(comparison['p'])}, both by {by})"
    if comparison["p"] < LEVEL:
        return head + ". The difference is more than chance explains at the 5 % level."
    return head + ". A difference of this size can be chance: these questions do not tell the two runs apart."


def _p(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else f"{value:.1e}"


def page(comparison: dict[str, Any]) -> Page:
    """The comparison for readers."""
    labels = [
        f"{title}, {model['folder']}" for title, model in zip(comparison["title"], comparison["model"], strict=True)
    ]
    blocks: list[Table | Text] = [Text(comparison["sentence"])]
    if not comparison["same_prompts"]:
        blocks.append(Text("Note: prompts or pictures differ between the two runs; the questions are the same."))
    names = zip(("first", "second"), labels, comparison["folder"], strict=True)
    blocks.append(Table("", ("run", "what", "folder"), [tuple(name) for name in names]))
    header = ("figure", "first", "second", "difference", "95 % interval", "p", "test", "n")
    rows = [_row(name, entry, name == comparison["figure"]) for name, entry in comparison["figures"].items()]
    blocks.append(Table("Figures", header, rows, (1, 2, 3, 4, 5, 7)))
    if len(rows) > 1:
        blocks.append(Text("With several figures, one in twenty is below p = 0.05 by chance alone."))
    changed = comparison["changed"]
    if changed is None:
        blocks.append(Text("The scorer gives single questions no credit, so none are named."))
    else:
        rows = [(spoken(name), str(len(ids)), _ids(ids)) for name, ids in changed.items()]
        blocks.append(Table("Questions", ("questions", "number", "ids"), rows, (1,)))
    return Page("Comparison: " + " and ".join(dict.fromkeys(comparison["title"])), blocks)


def _row(name: str, entry: dict[str, Any], bold: bool) -> tuple[str | Cell, ...]:
    tested = "p" in entry
    return (
        spoken(name),
        f"{entry['first']:.2f}",
        f"{entry['second']:.2f}",
        Cell(f"{entry['difference']:+.2f}", bold),
        "{:.2f} to {:.2f}".format(*entry["interval"]) if tested else "-",
        _p(entry["p"]) if tested else "-",
        entry["test"] if tested else "-",
        f"{entry['n']} {entry['unit']}",
    )


def _ids(ids: list[str]) -> str:
    return ", ".join(ids[:SHOWN]) + (f" and {len(ids) - SHOWN} more" if len(ids) > SHOWN else "")
