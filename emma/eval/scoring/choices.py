"""What multiple-choice scorers share: rows with lettered options, and accuracy overall and by category."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from emma.eval.scoring.score import Figure, accuracy

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class Choice:
    """A question with options by letter; `answer` is the right letter, "" where it is not published."""

    id: str
    question: str
    options: Mapping[str, str]
    answer: str
    category: str = ""


def lettered(options: Iterable[Any]) -> dict[str, str]:
    """A -> first option, B -> second ..."""
    return {LETTERS[i]: str(option) for i, option in enumerate(options)}


def by_category(
    right: Sequence[bool], groups: Sequence[Any], categories: Sequence[str], unit: str = "questions"
) -> dict[str, Figure]:
    """`category/accuracy` of every category that occurs, in order of first occurrence; "" is left out."""
    figures = {}
    for name in dict.fromkeys(category for category in categories if category):
        chosen = [i for i, category in enumerate(categories) if category == name]
        figures[f"{name}/accuracy"] = accuracy([right[i] for i in chosen], [groups[i] for i in chosen], unit)
    return figures
