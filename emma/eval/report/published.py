"""Published figures (`published.csv`, each with its source), and what must be known before comparing with them."""

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("published.csv")
# (name and metric in the file) -> (our benchmark, our figure; None: the primary one). Other metrics of the file are
# gains, sample counts and model sizes.
FIGURES: dict[tuple[str, str], tuple[str, str | None]] = {
    ("VQAv2", "accuracy %"): ("vqav2", None),
    ("VizWiz-VQA", "accuracy %"): ("vizwiz", None),
    ("ScienceQA-IMG", "accuracy %"): ("scienceqa", "image_accuracy"),
    ("GQA", "accuracy %"): ("gqa", None),
    ("OK-VQA", "accuracy %"): ("okvqa", None),
    ("MMBench-en", "accuracy % (CircularEval)"): ("mmbench_en", "circular_accuracy"),
    ("MMBench-cn", "accuracy % (CircularEval)"): ("mmbench_cn", "circular_accuracy"),
    ("MMMU", "accuracy %"): ("mmmu", None),
    ("MathVista", "accuracy %"): ("mathvista", None),
    ("MuirBench", "accuracy %"): ("muirbench", None),
    ("A-Bench", "accuracy %"): ("abench", None),
    ("POPE", "score % (accuracy or F1 not stated)"): ("pope", "mean_f1"),
    ("MMVP", "pair accuracy %"): ("mmvp", "pair_accuracy"),
    ("FOIL", "accuracy % on the hard pairs (upstream scorer)"): ("foil", "pair_accuracy"),
    ("AMBER", "Attribute accuracy % (upstream scorer, see the notes on its label shift)"): (
        "amber",
        "attribute/accuracy",
    ),
    ("AMBER", "Relation accuracy % (upstream scorer)"): ("amber", "relation/accuracy"),
    ("AMBER", "Existence accuracy % (upstream scorer)"): ("amber", "existence/accuracy"),
}
_EMMA = "EMMA"
# (benchmark, start of the method's name or "" for all, data or "" for all, note)
_NOTES = (
    ("vqav2", _EMMA, "", "above every published test-dev result of its time, and its split is not stated: no bar"),
    ("vqav2", "LLaVA-1.5", "", "test-dev, scored by the server"),
    ("vizwiz", _EMMA, "", "trained on VizWiz"),
    ("vizwiz", "LLaVA-1.5", "", "test, scored by the server"),
    ("scienceqa", _EMMA, "1.8M", "trained on ScienceQA too"),
    ("mmvp", "LLaVA-1.5", "", "the MMVP paper's figure under its own protocol: not strictly comparable"),
    ("pope", "", "", "the paper does not say whether this is F1 or accuracy"),
    (
        "amber",
        "",
        "",
        "wrongly scored: labels were read one item too far (a perfect model would get 0.01 on Attribute), and the "
        "paper swaps the names of existence and relation: not to be reproduced",
    ),
    (
        "foil",
        "",
        "",
        "on 6,775 hard pairs, those that LLaVA-1.5 or EMMA got wrong; the list is not released, and chance on it is "
        "not 50 percent for either: not comparable with all pairs",
    ),
    (
        "mathvista",
        _EMMA,
        "",
        "made without the picture (the released script leaves the image token out), and an answer counts when the "
        "right one is any part of it",
    ),
    ("mathvista", "", "", "official extraction asks GPT for answers: not comparable with rules alone"),
    ("mmmu", _EMMA, "", "the released script shows at most four options, and asks for a letter in open questions too"),
    ("muirbench", _EMMA, "", "the released script leaves the picture out where the question has no <image>"),
)


@dataclass(frozen=True)
class Published:
    """A published figure in percent: `figure` is ours that it would stand beside (None: the primary one), `metric` what
    the source calls it."""

    benchmark: str
    figure: str | None
    metric: str
    method: str
    value: float
    source: str
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        return {**self.__dict__, "notes": list(self.notes)}


def published(benchmarks: Iterable[str]) -> list[Published]:
    """The figures of `benchmarks`, in the file's order; what two tables of a paper repeat is there once."""
    wanted = set(benchmarks)
    return [figure for figure in _all() if figure.benchmark in wanted]


@cache
def _all() -> tuple[Published, ...]:
    found: dict[tuple, Published] = {}
    with FILE.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            name = (row["benchmark"], row["metric"])
            if name not in FIGURES:
                continue
            benchmark, figure = FIGURES[name]
            details = [row[key] for key in ("llm", "data") if row[key] not in ("", "-")]
            method = f"{row['method']} ({', '.join(details)})" if details else row["method"]
            value = float(row["value"])
            notes = tuple(_notes(benchmark, row["method"], row["data"]))
            entry = Published(benchmark, figure, row["metric"], method, value, row["source"], notes)
            found.setdefault((benchmark, figure, _same_model(row), value), entry)
    return tuple(found.values())


def _same_model(row: dict[str, str]) -> tuple[str, ...]:
    return row["method"], row["llm"], row["params"], row["data"]


def _notes(benchmark: str, method: str, data: str) -> list[str]:
    return [
        note
        for of, start, trained_on, note in _NOTES
        if of == benchmark and method.startswith(start) and trained_on in ("", data)
    ]


def comparable(report: dict[str, Any]) -> bool:
    """Whether published figures may stand beside a report: not for the tiny world's questions, nor for a control."""
    control = report["fingerprint"].get("control", {})
    return (
        not report["data"]["world"]
        and report["benchmark"] != "world"
        and all(value == "none" for value in control.values())
        and "constant" not in report["fingerprint"]
    )
