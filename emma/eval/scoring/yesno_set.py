"""Yes/no sets that are read by POPE's rule: rows in several layouts, and the five figures of a group."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from emma.eval.scoring import yesno
from emma.eval.scoring.score import Figure, figure


@dataclass(frozen=True)
class Row:
    """A question; `groups` are what it is reported under besides the whole."""

    id: str
    image: str
    question: str
    label_no: bool
    groups: tuple[str, ...] = ()


def figures_of(rows: Sequence[Row], texts: Mapping[str, str], prefix: str = "") -> dict[str, Figure]:
    """Accuracy, precision, recall, F1 and yes-ratio over the rows that have an answer, yes being positive; resampled by
    image."""
    images = {image: i for i, image in enumerate(dict.fromkeys(row.image for row in rows))}
    counts = np.zeros((max(1, len(images)), 4))
    for row in rows:
        if row.id in texts:
            counts[images[row.image]] += yesno.outcome(yesno.is_no(texts[row.id]), row.label_no)
    n = int(counts.sum())
    return {f"{prefix}{name}": figure(counts, rule, n, "questions") for name, rule in yesno.FIGURES.items()}


def credits_of(rows: Sequence[Row], texts: Mapping[str, str]) -> dict[str, float]:
    """1 for a right answer, 0 for a wrong one, by the id of every question that has one."""
    return {row.id: float(yesno.is_no(texts[row.id]) == row.label_no) for row in rows if row.id in texts}


def expected_of(rows: Sequence[Row]) -> dict[str, str]:
    return {row.id: "no" if row.label_no else "yes" for row in rows}


def label_is_no(value: Any) -> bool:
    """A label counts as no when it contains `no` in any case (R-Bench's rule)."""
    return "no" in str(value).lower()
