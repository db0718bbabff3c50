"""A control that needs no model: the same answer to every question."""

from collections.abc import Sequence
from typing import Any

from emma.eval.answering import Answered, Question, cut_at


class ConstantAnswerer:
    """What a benchmark gives to whoever always says `text`."""

    device = "none"

    def __init__(self, text: str):
        self.text, self.name = text, f"constant:{text}"

    def fingerprint(self) -> dict[str, Any]:
        return {
            "weights": None,
            "dtype": None,
            "template": None,
            "instruction": None,
            "image_mode": None,
            "constant": self.text,
        }

    def instruction(self, question: str) -> str | None:
        return None

    def answer(self, questions: Sequence[Question], max_new_tokens: int, stop: Sequence[str] = ()) -> list[Answered]:
        text, _ = cut_at(self.text, stop)
        return [Answered(text, True) for _ in questions]
