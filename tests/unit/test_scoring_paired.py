"""Differences of two runs: McNemar's test and the paired bootstrap on cases worked out by hand."""

import numpy as np
import pytest

from emma.eval.scoring import yesno
from emma.eval.scoring.paired import bootstrap_p, difference, mcnemar, right_or_wrong
from emma.eval.scoring.score import RESAMPLES, Figure, accuracy, figure


def single(right):
    """Accuracy with every question a unit of its own."""
    return accuracy([bool(ok) for ok in right], list(range(len(right))))


@pytest.mark.parametrize(
    ("only_first", "only_second", "p"),
    [
        (0, 0, 1),
        (3, 3, 1),  # 2 * P(X <= 3) of 6 is above 1
        (1, 6, 2 * (1 + 7) / 2**7),  # C(7,0) + C(7,1)
        (6, 1, 2 * (1 + 7) / 2**7),
        (0, 10, 2 / 2**10),
        (2, 8, 2 * (1 + 10 + 45) / 2**10),
    ],
)
def test_mcnemar(only_first, only_second, p):
    assert mcnemar(only_first, only_second) == pytest.approx(p)


def test_mcnemar_of_many_units():
    # z = (10000 - 9800 - 1) / sqrt(19800) = 1.4143 with the continuity correction: p = 0.1573
    assert mcnemar(9800, 10000) == pytest.approx(0.1573, abs=2e-4)


def test_right_and_wrong_of_single_units_is_mcnemars():
    # right in the first: 0-3; in the second: 1-9. Only first: 0; only second: 4-9.
    found = difference(single([i < 4 for i in range(12)]), single([1 <= i < 10 for i in range(12)]))
    assert (found.test, found.units, found.only_first, found.only_second) == ("McNemar", 12, 1, 6)
    assert found.p == pytest.approx(0.125)
    assert found.value == pytest.approx(100 * (9 - 4) / 12)
    assert found.interval[0] < found.value < found.interval[1]


def test_questions_about_one_image_are_not_independent():
    # Ten images with four questions each; the second run gets three more right, all about one image. With every
    # question a unit of its own that were McNemar's 0 against 3; here it is one image in ten.
    images = [i // 4 for i in range(40)]
    first, second = accuracy([False] * 40, images), accuracy([i < 3 for i in range(40)], images)
    found = difference(first, second)
    assert (found.test, found.units, found.only_first) == ("paired bootstrap", 10, None)
    assert found.value == 7.5
    # No difference in a resample without that image, (9/10)^10 = 0.349 of them, so p is about 2 * 0.349
    assert found.p == pytest.approx(0.697, abs=0.1)


def test_the_same_resamples_are_drawn_for_both_runs():
    # Each unit gains 30 points, so every resample does: the interval has no width, and p is 2 * (1 + 0) / (1000 + 1)
    counts = np.array([[0.1, 1], [0.5, 1], [0.3, 1]])
    first, second = (
        figure(c, lambda s: s[:, 0] / s[:, 1], 3, "questions") for c in (counts, counts + np.array([0.3, 0]))
    )
    found = difference(first, second)
    assert found.test == "paired bootstrap"
    assert found.value == pytest.approx(30)
    assert found.interval == pytest.approx([30, 30])
    assert found.p == pytest.approx(2 / (RESAMPLES + 1))


def test_no_difference_is_no_evidence():
    found = difference(single([True, False, True]), single([True, False, True]))
    assert (found.value, found.interval, found.p) == (0, [0, 0], 1)


def test_f1_is_compared_by_the_bootstrap():
    outcomes = np.array([yesno.outcome(*pair) for pair in [(False, False), (True, True), (False, True), (True, False)]])
    f1 = figure(outcomes, yesno.f1, 4, "questions")
    assert right_or_wrong(f1) is None, "an F1 is no share of right units"
    assert difference(f1, f1).test == "paired bootstrap"


def test_bootstrap_p():
    drawn = np.array([-1.0] * 24 + [1.0] * (RESAMPLES - 24))
    assert bootstrap_p(drawn) == pytest.approx(2 * 25 / (RESAMPLES + 1))
    assert bootstrap_p(-drawn) == bootstrap_p(drawn)


def test_what_cannot_be_compared():
    bare = Figure(50.0, 4, "questions", None)
    four, three = single([True] * 4), single([True] * 3)
    assert difference(bare, four) is None
    assert difference(four, three) is None
    assert difference(single([True]), single([False])) is None
