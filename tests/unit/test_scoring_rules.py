"""The shared scoring rules on hand-made answers, each named trap with its expected value worked out by hand."""

import numpy as np
import pytest

from emma.eval.scoring.letters import infer_letter
from emma.eval.scoring.score import accuracy, figure, ratio
from emma.eval.scoring.yesno import FIGURES, is_no, outcome

COLOURS = {"A": "red", "B": "blue", "C": "green", "D": "grey"}


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("A", "A"),
        ("B.", "B"),
        ("(C)", "C"),
        ("[D]: grey!", "D"),
        ("{B}", "B"),
        ("*B*", "B"),
        ("b", None),  # letters are case-sensitive, and "b" is no option's text
        ("（C）", None),  # full-width brackets do not separate
        ("C。", None),
        ("The right option is B", "B"),
        ("I think B is it, yes", "B"),  # B is word 3 of 6: index 2 > 6 - 5
        ("I think B is it, yes indeed", None),  # index 2 is not larger than 7 - 5
        ("I think B is the one, the answer is B", "B"),  # too early for the word rule; "answer is B"
        ("A or B", None),  # two letters
        ("A or B, so the answer is B", "B"),
        ("A B A: The ANSWER IS **a**", "A"),  # any case, asterisks
        ("the answer is blue", "B"),  # what follows the letter is not looked at: the option text would say B too
        ("the answer is green and not blue", None),  # "answer is g" is no letter; two texts
        ("the answer is dark", "D"),  # the trap itself: d of dark
        ("it is Blue", "B"),
        ("red and blue", None),
        ("Z", "Z"),
        ("Z or A", "A"),
        ("Sorry, I can't help with images of people yet. A", "Z"),
        ("Cannot determine the answer", "Z"),
        ("", None),
        ("it is blue, as far as one can see from here", None),  # 43 characters > 2 * (3 + 4 + 5 + 4)
        ("it is blue, as far as I can see.", "B"),  # 32 characters is not longer than 32
    ],
)
def test_letter(answer, letter):
    assert infer_letter(answer, COLOURS) == letter


def test_letter_is_one_of_the_item():
    two = {"A": "open", "B": "closed"}
    assert infer_letter("C", two) is None
    assert infer_letter("the answer is C", two) is None
    assert infer_letter("C, but B", two) == "B"


@pytest.mark.parametrize("answer", ["No", "no", "not", "No.", "no, there is none", "Yes, there is no doubt", " no"])
def test_no(answer):
    assert is_no(answer)


@pytest.mark.parametrize(
    "answer",
    ["NO", "Nope", "None", "", "isn't", "1. No", "no\nthere is none", "Yes.", "Yes. No", "no;", "There\tis\tno\tdog"],
)
def test_yes(answer):
    assert not is_no(answer)


def test_no_comma_is_deleted_not_replaced():
    assert is_no("no,")
    assert not is_no("no,not")  # becomes "nonot"


def test_yes_no_figures():
    # 3 right yes, 1 wrong yes, 4 right no, 2 wrong no
    pairs = [(False, False)] * 3 + [(False, True)] + [(True, True)] * 4 + [(True, False)] * 2
    sums = np.array([[outcome(*pair) for pair in pairs]]).sum(axis=1).astype(float)
    values = {name: rule(sums)[0] for name, rule in FIGURES.items()}
    assert values["accuracy"] == pytest.approx(7 / 10)
    assert values["precision"] == pytest.approx(3 / 4)
    assert values["recall"] == pytest.approx(3 / 5)
    assert values["f1"] == pytest.approx(2 * (3 / 4) * (3 / 5) / (3 / 4 + 3 / 5))
    assert values["yes_ratio"] == pytest.approx(4 / 10)


def test_division_by_zero_is_zero():
    all_no = np.array([[0.0, 0.0, 5.0, 5.0]])
    assert FIGURES["precision"](all_no)[0] == 0
    assert FIGURES["f1"](all_no)[0] == 0
    assert ratio(np.array([1.0]), np.array([0.0]))[0] == 0


def test_interval_is_the_binomial_one_and_seeded():
    right = [True] * 60 + [False] * 40
    first = accuracy(right, list(range(100)))
    assert first == accuracy(right, list(range(100)))
    assert first.value == pytest.approx(60)
    # normal approximation: 60 +- 1.96 * sqrt(.6 * .4 / 100) = 50.4 .. 69.6
    assert first.interval == pytest.approx([50.4, 69.6], abs=1.5)


def test_interval_draws_groups():
    right = ([True] * 10 + [False] * 10) * 5  # ten groups of ten equal answers
    groups = [i // 10 for i in range(100)]
    low, high = accuracy(right, groups).interval
    # ten coins, not a hundred: 50 +- 1.96 * 15.8
    assert low <= 25
    assert high >= 75


def test_interval_of_one_unit_is_none():
    assert accuracy([True], [0]).interval is None
    assert figure(np.zeros((0, 2)), lambda sums: ratio(sums[:, 0], sums[:, 1]), 0, "questions").value == 0
