"""Published figures (`published.csv`, with their sources), and what keeps some of them from being comparable."""

import csv
from dataclasses import dataclass
from pathlib import Path

FILE = Path(__file__).with_name("published.csv")
NAMES = {
    "abench": "A-Bench",
    "amber": "AMBER",
    "foil": "FOIL",
    "gqa": "GQA",
    "llava_bench_wild": "LLaVA-Bench (In-the-Wild)",
    "mathvista": "MathVista",
    "mmbench_cn": "MMBench-cn",
    "mmbench_en": "MMBench-en",
    "mmmu": "MMMU",
    "mmvp": "MMVP",
    "muirbench": "MuirBench",
    "okvqa": "OK-VQA",
    "pope": "POPE",
    "scienceqa": "ScienceQA-IMG",
    "vizwiz": "VizWiz-VQA",
    "vqav2": "VQAv2",
}
"""Benchmark names of the csv by ours."""

_IMPLAUSIBLE = "above every published test-dev result of its time, split not stated: no bar to compare with"
_SHIFTED = "scored with labels shifted by one item: not to be reproduced"
_HARD = "on 6,775 pairs chosen by the two models' errors, not on all pairs"
_NO_IMAGE = "the released code asks MathVista without its pictures and counts substrings"
_OTHER = "made by the benchmark's own protocol (GPT-4 as grader): not strictly comparable"
_UNSTATED = "not said whether F1 or accuracy"


@dataclass(frozen=True)
class Published:
    """One figure in percent; `note` says why it is not comparable, "" where nothing is known against it."""

    method: str
    metric: str
    value: float
    source: str
    note: str


def published_figures(benchmark: str) -> list[Published]:
    """What the csv holds of a benchmark, in its order; rows that are counts or differences are left out."""
    name = NAMES.get(benchmark)
    if name is None:
        return []
    with FILE.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["benchmark"] == name]
    figures = []
    for row in rows:
        metric = row["metric"]
        if not metric.startswith(("accuracy", "pair accuracy", "score", "Relation", "Existence", "Attribute")):
            continue
        method = " ".join(part for part in (row["method"], f"({row['data']})" if row["data"] else "") if part)
        note = _note(benchmark, row["method"], metric)
        figures.append(Published(method, metric, float(row["value"]), row["source"], note))
    return figures


def _note(benchmark: str, method: str, metric: str) -> str:
    emma = method.startswith("EMMA")
    notes = {
        "amber": _SHIFTED,
        "foil": _HARD,
        "pope": _UNSTATED,
        "vqav2": _IMPLAUSIBLE if emma else "",
        "mathvista": _NO_IMAGE if emma else "",
        "mmvp": "" if emma else _OTHER,
    }
    return notes.get(benchmark, "")
