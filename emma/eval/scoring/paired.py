"""Two runs on the same questions: is the difference of a figure more than chance?"""

import math
from dataclasses import dataclass

import numpy as np

from emma.eval.scoring.score import RESAMPLES, Figure, Floats, resampled


@dataclass(frozen=True)
class Difference:
    """`value` = second minus first, in the figures' scale, with its 95 % interval from the paired bootstrap and a
    two-sided `p`. `test` is how p was found: `McNemar` or `paired bootstrap`. For McNemar, `only_first` and
    `only_second` count the units that one run alone got right; None otherwise."""

    value: float
    interval: list[float]
    p: float
    test: str
    units: int
    only_first: int | None = None
    only_second: int | None = None


def difference(first: Figure, second: Figure) -> Difference | None:
    """Second minus first over the same resampling units in the same order.

    Where every unit is right or wrong and the figure is the share of right ones, p is McNemar's; otherwise (several
    questions an image, F1, credits between 0 and 1) it is the paired bootstrap's. None where a figure does not carry
    its counts, their units differ in number, or there are fewer than two.
    """
    if first.counts is None or second.counts is None or len(first.counts) != len(second.counts):
        return None
    units = len(first.counts)
    if units < 2:
        return None
    drawn = resampled(second) - resampled(first)
    low, high = np.percentile(drawn, [2.5, 97.5])
    value, interval = second.value - first.value, [float(low), float(high)]
    outcomes = right_or_wrong(first), right_or_wrong(second)
    if outcomes[0] is None or outcomes[1] is None:
        return Difference(value, interval, bootstrap_p(drawn), "paired bootstrap", units)
    only_first = int(np.sum(outcomes[0] > outcomes[1]))
    only_second = int(np.sum(outcomes[1] > outcomes[0]))
    return Difference(value, interval, mcnemar(only_first, only_second), "McNemar", units, only_first, only_second)


def right_or_wrong(of: Figure) -> Floats | None:
    """float[C] of 0 and 1, when the figure is the share of right ones among its C units; else None."""
    if of.counts is None or of.statistic is None:
        return None
    outcomes = of.statistic(of.counts)
    whole = of.statistic(of.counts.sum(axis=0, keepdims=True))[0]
    return outcomes if np.isin(outcomes, (0, 1)).all() and math.isclose(outcomes.mean(), whole, abs_tol=1e-9) else None


def mcnemar(only_first: int, only_second: int) -> float:
    """McNemar's test, exact for any number of units (McNemar 1947): where chance alone decides, each unit that one run
    alone got right is either's with probability 1/2. Two-sided: 2 P(X <= smaller), X binomial(n, 1/2), at most 1."""
    n, smaller = only_first + only_second, min(only_first, only_second)
    logs = (
        math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) - n * math.log(2) for k in range(smaller + 1)
    )
    return min(1.0, 2 * math.fsum(map(math.exp, logs)))


def bootstrap_p(drawn: Floats) -> float:
    """Two-sided p of resampled differences `drawn`: twice the smaller share of those on one side of 0, one counted in
    on each side, so that it is never 0 (Davison and Hinkley 1997, chapter 4)."""
    below, above = int(np.sum(drawn <= 0)), int(np.sum(drawn >= 0))
    return min(1.0, 2 * (1 + min(below, above)) / (RESAMPLES + 1))
