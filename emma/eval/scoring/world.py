"""The tiny world's held-out questions: exact match, overall and by type of question."""

import json
from dataclasses import dataclass
from pathlib import Path

from emma.errors import EmmaError
from emma.eval.answers import Answer, as_id, match
from emma.eval.scoring.score import Score, accuracy

SCORER = "exact match after lower-casing and dropping a final full stop"
VERSION = 1


@dataclass(frozen=True)
class Row:
    """A held-out question about one scene; `type` is colour, count, relation ..."""

    id: str
    image: str
    question: str
    answer: str
    type: str


def read(data: Path) -> list[Row]:
    """Rows of `questions.jsonl` in `data`, in file order."""
    path = Path(data) / "questions.jsonl"
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise EmmaError(f"cannot read the world's questions {path}: {error.strerror}") from error
    rows = [_row(line, path, number) for number, line in enumerate(lines, 1) if line.strip()]
    if not rows or len({row.id for row in rows}) != len(rows):
        raise EmmaError(f"{path}: expected one question a line, each with its own question_id; found {len(rows)} lines")
    return rows


def _row(line: str, path: Path, number: int) -> Row:
    try:
        row = json.loads(line)
        if (id := as_id(row["question_id"])) is None:
            raise ValueError("question_id is no id")
        return Row(id, row["image"], row["text"], row["answer"], row["type"])
    except (ValueError, KeyError, TypeError) as error:
        raise EmmaError(f"{path} line {number}: expected question_id, image, text, answer, type; got {line}") from error


def normalise(text: str) -> str:
    """`"  Red. "` becomes `"red"`: outer whitespace, case and one final full stop do not count."""
    return text.strip().lower().removesuffix(".").rstrip()


def score(data: Path, answers: list[Answer]) -> Score:
    """Accuracy over all questions (primary) and for each type; a question without an answer is wrong."""
    rows = read(data)
    matched = match((row.id for row in rows), answers)
    right = {row.id: normalise(matched.texts.get(row.id, "")) == normalise(row.answer) for row in rows}
    figures = {"accuracy": _accuracy(rows, right)}
    for kind in dict.fromkeys(row.type for row in rows):
        figures[f"accuracy/{kind}"] = _accuracy([row for row in rows if row.type == kind], right)
    credits = {id: float(ok) for id, ok in right.items()}
    expected = {row.id: row.answer for row in rows}
    return Score("accuracy", figures, "images", matched.counts, credits=credits, expected=expected)


def _accuracy(rows: list[Row], right: dict[str, bool]):
    return accuracy([right[row.id] for row in rows], [row.image for row in rows])
