"""Two runs on the same questions: does their difference mean anything?"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import comb
from typing import Any

import numpy as np

from emma.errors import EmmaError
from emma.eval.scoring.score import RESAMPLES, SEED

ALPHA = 0.05


@dataclass(frozen=True)
class Comparison:
    """`difference` of the mean credits, second minus first, in percentage points over `n` common questions, its 95 %
    paired bootstrap `interval`, and `p`: McNemar's where credits are 0 or 1, else the bootstrap's."""

    n: int
    first: float
    second: float
    difference: float
    interval: tuple[float, float]
    p: float
    test: str

    @property
    def sentence(self) -> str:
        low, high = self.interval
        verdict = (
            "the difference is larger than chance explains"
            if self.p < ALPHA
            else "chance alone explains a difference of this size"
        )
        return (
            f"{self.difference:+.2f} points ({self.first:.2f} to {self.second:.2f}) over {self.n} common questions, "
            f"95 % interval {low:+.2f} to {high:+.2f}, p = {self.p:.3g} ({self.test}): {verdict}."
        )

    def as_dict(self) -> dict[str, Any]:
        return {**self.__dict__, "interval": list(self.interval), "sentence": self.sentence}


def compare(first: Mapping[str, float], second: Mapping[str, float]) -> Comparison:
    """Compare credits 0..1 by question id.

    Raises:
        EmmaError: no question in common.
    """
    ids = sorted(first.keys() & second.keys())
    if not ids:
        raise EmmaError("the two runs have no question with a credit in common; compare runs of the same benchmark")
    a, b = (np.array([credits[id] for id in ids]) for credits in (first, second))
    rng = np.random.default_rng(SEED)
    draws = rng.integers(0, len(ids), (RESAMPLES, len(ids)))
    means = 100 * (b - a)[draws].mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    if set(np.unique(np.concatenate([a, b]))) <= {0.0, 1.0}:
        p, test = mcnemar(int(((a == 1) & (b == 0)).sum()), int(((a == 0) & (b == 1)).sum())), "McNemar, exact"
    else:
        tail = min((means <= 0).mean(), (means >= 0).mean())
        p, test = min(1.0, 2 * float(tail)), "paired bootstrap"
    mean_a, mean_b = 100 * float(a.mean()), 100 * float(b.mean())
    return Comparison(len(ids), mean_a, mean_b, mean_b - mean_a, (float(low), float(high)), p, test)


def mcnemar(only_first: int, only_second: int) -> float:
    """Two-sided p of McNemar's exact test (McNemar 1947): of the questions that one of two got right, each is as likely
    to be the first's as the second's."""
    n, k = only_first + only_second, min(only_first, only_second)
    if n == 0:
        return 1.0
    return min(1.0, 2 * sum(comb(n, i) for i in range(k + 1)) / 2**n)
