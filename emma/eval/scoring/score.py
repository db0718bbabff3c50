"""What a scorer returns: named figures in percent, each with its number of units and a bootstrap interval."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
RESAMPLES = 1000
SEED = 0


@dataclass(frozen=True)
class Figure:
    """One figure over `n` units (`unit`: questions, pairs ...), in percent unless `scale` says otherwise (points).
    `interval` holds 95 %; None where fewer than two resampling units exist.

    `counts` float[C, K] and `statistic` are what it was computed from, see `figure`; two runs are compared through
    them. None in a figure that was computed otherwise.
    """

    value: float
    n: int
    unit: str
    interval: list[float] | None
    scale: str = "percent"
    counts: Floats | None = field(default=None, compare=False, repr=False)
    statistic: Callable[[Floats], Floats] | None = field(default=None, compare=False, repr=False)

    def as_dict(self) -> dict:
        """JSON form, without what it was computed from."""
        return {name: getattr(self, name) for name in ("value", "n", "unit", "interval", "scale")}


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
            "figures": {name: figure.as_dict() for name, figure in self.figures.items()},
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
    whole = Figure(value, n, unit, None, counts=counts, statistic=statistic)
    if len(counts) < 2:
        return whole
    low, high = np.percentile(resampled(whole), [2.5, 97.5])
    return replace(whole, interval=[float(low), float(high)])


def resampled(of: Figure) -> Floats:
    """float[RESAMPLES]: the figure over units drawn with replacement.

    The draws follow from the number of units alone, so that two figures over the same units are drawn alike: their
    differences are a paired bootstrap.

    Raises:
        ValueError: a figure that does not carry its counts.
    """
    if of.counts is None or of.statistic is None:
        raise ValueError("the figure does not carry its counts")
    rng, units = np.random.default_rng(SEED), len(of.counts)
    drawn = (np.bincount(rng.integers(0, units, units), minlength=units) for _ in range(RESAMPLES))
    return 100 * of.statistic(np.stack([weights @ of.counts for weights in drawn]))


def accuracy(right: list[bool], groups: list, unit: str = "questions") -> Figure:
    """Share of `right`, resampled by `groups` (one label for each item, such as its image)."""
    number = {group: i for i, group in enumerate(dict.fromkeys(groups))}
    counts = np.zeros((len(number), 2))
    for group, is_right in zip(groups, right, strict=True):
        counts[number[group]] += (is_right, 1)
    return figure(counts, lambda sums: ratio(sums[:, 0], sums[:, 1]), len(right), unit)
