"""SEED-Bench: multiple-choice questions about images and videos."""

from dataclasses import dataclass
from pathlib import Path

from emma.errors import EmmaError
from emma.eval.answers import Answer, match
from emma.eval.scoring.choices import by_category, lettered
from emma.eval.scoring.score import Score, accuracy
from emma.eval.tables import find_files, read_json

SCORER = "SEED-Bench accuracy, text equal to the letter (LLaVA)"
VERSION = 1
SETTINGS = ()


@dataclass(frozen=True)
class Row:
    """A question; `data_type` is image or video, `media` the picture's or video's name."""

    id: str
    question: str
    options: dict[str, str]
    answer: str
    kind: str
    data_type: str
    media: str


def read(data: Path) -> list[Row]:
    """Rows of `SEED-Bench.json`, in order.

    Raises:
        EmmaError: missing file or field.
    """
    file = find_files(data, ("SEED-Bench.json", "*/SEED-Bench.json"), "SEED-Bench questions")[0]
    content = read_json(file, "SEED-Bench")
    try:
        names = {number: name for name, number in content["question_type"].items()}
        return [
            Row(
                str(row["question_id"]),
                str(row["question"]),
                lettered(row[f"choice_{letter}"] for letter in "abcd"),
                str(row["answer"]).strip(),
                str(names.get(row["question_type_id"], row["question_type_id"])),
                str(row["data_type"]),
                str(row["data_id"]),
            )
            for row in content["questions"]
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise EmmaError(f"{file}: expected questions and question_type ({error!r})") from error


def score(data: Path, answers: list[Answer]) -> Score:
    """Accuracy over all questions (primary), over images, over videos, and by question type. A missing answer is
    wrong."""
    rows = read(data)
    matched = match((row.id for row in rows), answers)
    right = [matched.texts.get(row.id) == row.answer for row in rows]
    media = [row.media for row in rows]
    figures = {"accuracy": accuracy(right, media)}
    figures |= by_category(right, media, [row.data_type for row in rows])
    figures |= by_category(right, media, [row.kind for row in rows])
    credits = dict(zip([row.id for row in rows], map(float, right), strict=True))
    expected = {row.id: row.answer for row in rows}
    return Score("accuracy", figures, "images and videos", matched.counts, credits=credits, expected=expected)
