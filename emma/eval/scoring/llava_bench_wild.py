"""LLaVA-Bench (In-the-Wild): 60 open questions on 24 images, graded by GPT-4 against a reference answer."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from emma.errors import EmmaError
from emma.eval.answers import Answer, match
from emma.eval.scoring.judge import JUDGE, JUDGE_MODEL, reviewer
from emma.eval.scoring.score import Figure, Score, figure, ratio
from emma.eval.tables import find_files, read_json, read_rows

SCORER = "LLaVA-Bench's ratio of mean grades"
VERSION = 1
SETTINGS = (JUDGE, JUDGE_MODEL)
SYSTEM = "You are a helpful and precise assistant for checking the quality of the answer."


@dataclass(frozen=True)
class Row:
    """A question; `caption` and `reference` are what the judge is given."""

    id: str
    image: str
    category: str
    text: str
    caption: str
    reference: str


def read(data: Path) -> list[Row]:
    """Rows of `questions.jsonl` with `context.jsonl` and `answers_gpt4.jsonl`.

    Raises:
        EmmaError: missing file or field.
    """

    def table(name: str) -> list[dict[str, Any]]:
        return read_rows(find_files(data, (name,), "LLaVA-Bench rows"), "LLaVA-Bench")

    captions = {row["image"]: str(row["caption"]) for row in table("context.jsonl")}
    references = {str(row["question_id"]): str(row["text"]) for row in table("answers_gpt4.jsonl")}
    try:
        return [
            Row(
                str(row["question_id"]),
                str(row["image"]),
                str(row["category"]),
                str(row["text"]),
                captions[row["image"]],
                references[str(row["question_id"])],
            )
            for row in table("questions.jsonl")
        ]
    except KeyError as error:
        raise EmmaError(f"{data}: a question lacks {error}, in its row, context.jsonl or answers_gpt4.jsonl") from error


def parse(review: str) -> tuple[float, float]:
    """The two grades of a review's first line, exactly two numbers between single spaces or commas; else -1 and -1."""
    fields = review.split("\n")[0].replace(",", " ").split(" ")
    try:
        first, second = map(float, fields)
    except ValueError:
        return -1.0, -1.0
    return first, second


def to_judge(row: Row, answer: str, rules: Mapping[str, Any]) -> str:
    """What LLaVA's script shows the judge; the rules are read from `rule.json` of its data.

    Raises:
        EmmaError: no rule for the question's category.
    """
    try:
        rule = rules[f"llava_bench_{row.category}"]
        role = rule["role"]
        prompt = rule["prompt"]
    except KeyError as error:
        raise EmmaError(f"rule.json has no llava_bench_{row.category} with role and prompt ({error!r})") from error
    return (
        f"[Context]\n{row.caption}\n\n[Question]\n{row.text}\n\n[{role} 1]\n{row.reference}\n\n[End of {role} 1]\n\n"
        f"[{role} 2]\n{answer}\n\n[End of {role} 2]\n\n[System]\n{prompt}\n\n"
    )


def score(data: Path, answers: list[Answer], judge: str = "none", judge_model: str = "gpt-4-0314") -> Score:
    """100 x mean grade of the model / mean grade of the reference, overall (primary) and by category (conv, detail,
    complex). A review without two grades counts as -1 and -1, as in LLaVA's script."""
    rows = read(data)
    matched = match((row.id for row in rows), answers)
    review = reviewer(judge, judge_model, "LLaVA-Bench")
    rules: Mapping[str, Any] = {}
    if judge.startswith("http"):
        rules = read_json(find_files(data, ("rule.json", "*/rule.json"), "LLaVA's review rules")[0], "LLaVA-Bench")
    grades, categories, without = [], [], 0
    for row in rows:
        if row.id not in matched.texts:
            continue
        content = to_judge(row, matched.texts[row.id], rules) if rules else ""
        text = review(row.id, SYSTEM, content)
        if text is None:
            without += 1
            continue
        grades.append(parse(text))
        categories.append(row.category)
    if not grades:
        raise EmmaError(f"none of the {len(matched.texts)} answers has a review in {judge}")
    counts = np.array(grades)

    def of(chosen: np.ndarray) -> Figure:
        return figure(chosen, lambda sums: ratio(sums[:, 1], sums[:, 0]), len(chosen), "answers")

    figures = {"score": of(counts)}
    for category in dict.fromkeys(categories):
        figures[f"{category}/score"] = of(counts[[c == category for c in categories]])
    notes = (f"judge: {judge}" + (f", {judge_model}" if judge.startswith("http") else ""),)
    counted = matched.counts | {"without_review": without, "ungraded": sum(grade == (-1.0, -1.0) for grade in grades)}
    return Score("score", figures, "answers", counted, notes)
