"""What a scorer returns: named figures in percent, each with its number of units and a bootstrap interval."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
RESAMPLES = 1000
SEED = 0


@dataclass(frozen=True)
class Figure:
    """One figure over `n` units (`unit`: questions, pairs ...), in percent unless `scale` says otherwise (points).
    `interval` holds 95 %; None where fewer than two resampling units exist."""

    value: float
    n: int
    unit: str
    interval: list[float] | None
    scale: str = "percent"


@dataclass(frozen=True)
class Score:
    """All figures of a benchmark; `primary` names the one that stands for it. `resampled` is the unit that the
    bootstrap draws (pairs, images: answers about one image are not independent), `answers` the counts of
    `answers.match`. `notes` say what a reader must know before comparing the figures with others. `credits`
    0..1 by question id, where a question has one, let two runs be compared in pairs; `expected` is what would have been
    right."""

    primary: str
    figures: dict[str, Figure]
    resampled: str
    answers: dict[str, int]
    notes: tuple[str, ...] = ()
    credits: Mapping[str, float] = field(default_factory=dict)
    expected: Mapping[str, str] = field(default_factory=dict)

    def as_dict(self) -> dict:
        """JSON form: the primary figure as `metric`, `score`, `n`, `interval`, then all `figures` and the counts."""
        first = self.figures[self.primary]
        return {
            "metric": self.primary,
            "score": first.value,
            "n": first.n,
            "unit": first.unit,
            "interval": first.interval,
            "figures": {name: asdict(figure) for name, figure in self.figures.items()},
            "bootstrap": {"level": 0.95, "resamples": RESAMPLES, "seed": SEED, "resampled": self.resampled},
            "answers": self.answers,
            "notes": list(self.notes),
        }


def ratio(above: Floats, below: Floats) -> Floats:
    """`above / below` element by element, 0 where `below` is 0."""
    return np.divide(above, below, out=np.zeros_like(above, dtype=np.float64), where=below != 0)


def figure(counts: Floats, statistic: Callable[[Floats], Floats], n: int, unit: str) -> Figure:
    """The figure `100 * statistic(sum of counts)` with its 95 % percentile bootstrap interval.

    `counts` float[C, K]: K additive counts for each of C resampling units; `statistic` maps sums float[R, K] to
    float[R] in 0..1. Units are drawn with replacement, RESAMPLES times, from a fixed seed (Efron and Tibshirani 1993,
    chapter 13).
    """
    counts = np.asarray(counts, dtype=np.float64)
    value = float(100 * statistic(counts.sum(axis=0, keepdims=True))[0])
    units = len(counts)
    if units < 2:
        return Figure(value, n, unit, None)
    rng = np.random.default_rng(SEED)
    sums = np.stack([_resample(rng, units) @ counts for _ in range(RESAMPLES)])
    low, high = np.percentile(100 * statistic(sums), [2.5, 97.5])
    return Figure(value, n, unit, [float(low), float(high)])


def _resample(rng: np.random.Generator, units: int) -> NDArray[np.int64]:
    return np.bincount(rng.integers(0, units, units), minlength=units)


def accuracy(right: list[bool], groups: list, unit: str = "questions") -> Figure:
    """Share of `right`, resampled by `groups` (one label for each item, such as its image)."""
    number = {group: i for i, group in enumerate(dict.fromkeys(groups))}
    counts = np.zeros((len(number), 2))
    for group, is_right in zip(groups, right, strict=True):
        counts[number[group]] += (is_right, 1)
    return figure(counts, lambda sums: ratio(sums[:, 0], sums[:, 1]), len(right), unit)
