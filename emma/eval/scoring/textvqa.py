"""TextVQA: questions that need reading; agreement with ten annotators, both sides processed."""

from collections import deque
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from emma.errors import EmmaError
from emma.eval.answers import Answer, match
from emma.eval.scoring.score import Score
from emma.eval.scoring.vqa import most_common, share
from emma.eval.scoring.vqa_metric import credit_by_position, processed
from emma.eval.settings import Setting
from emma.eval.tables import find_files, read_json, read_rows

SCORER = "TextVQA accuracy as in LLaVA's evaluation (both sides processed, leave-one-out)"
VERSION = 1
OCR = Setting(
    "ocr",
    "tokens",
    ("tokens", "none"),
    ("questions",),
    "tokens: LLaVA's prompt with the reference OCR tokens of its question file; none: the question alone",
)
SETTINGS = (OCR,)


@dataclass(frozen=True)
class Row:
    """A question. `id` is its question_id, `image` the image's id."""

    id: str
    image: str
    question: str
    answers: tuple[str, ...]


def read(data: Path) -> list[Row]:
    """Rows of `TextVQA_0.5.1_val.json`, in order.

    Raises:
        EmmaError: missing file or field.
    """
    file = find_files(
        data, ("TextVQA_0.5.1_val.json", "*/TextVQA_0.5.1_val.json", "TextVQA*_val.json"), "TextVQA rows"
    )[0]
    content = read_json(file, "TextVQA")
    try:
        rows = content["data"] if isinstance(content, dict) else content
        return [
            Row(str(r["question_id"]), str(r["image_id"]), str(r["question"]).strip(), tuple(map(str, r["answers"])))
            for r in rows
        ]
    except (KeyError, TypeError) as error:
        raise EmmaError(
            f"{file}: expected question_id, image_id, question, answers in every row ({error!r})"
        ) from error


def prompts(data: Path) -> dict[tuple[str, str], str]:
    """LLaVA's prompts, with OCR tokens, by image and lower-cased question.

    Raises:
        EmmaError: `llava_textvqa_val_v051_ocr.jsonl` is not there.
    """
    file = find_files(data, ("llava_textvqa_val_v051_ocr.jsonl", "*/llava_textvqa_val_v051_ocr.jsonl"), "OCR tokens")
    return {_key(row): row["text"] for row in read_rows(file, "TextVQA")}


def _key(row: dict[str, Any]) -> tuple[str, str]:
    return str(row["question_id"]), str(row["text"]).split("\n")[0].strip().lower()


def name_answers(rows: list[Row], answers: list[Answer]) -> list[Answer]:
    """Answers under their question_id.

    An image has several questions, and LLaVA's ids are the images'. An answer with a `question` (or LLaVA's `prompt`,
    whose first line it is) is matched by image and question; others with an image's id go to its questions in file
    order.
    """
    by_text = {(row.image, row.question.lower()): row.id for row in rows}
    waiting: dict[str, deque[str]] = {}
    for row in rows:
        waiting.setdefault(row.image, deque()).append(row.id)

    def name(answer: Answer) -> str | None:
        text = answer.fields.get("question", answer.fields.get("prompt"))
        if isinstance(text, str):
            asked = text.split("\n")[0].strip().lower()
            if (found := by_text.get((answer.id or "", asked))) is not None:
                return found
        if answer.id is not None and waiting.get(answer.id):
            return waiting[answer.id].popleft()
        return answer.id

    return [replace(answer, id=name(answer)) for answer in answers]


def score(data: Path, answers: list[Answer]) -> Score:
    """Accuracy. A question without an answer counts as an empty one."""
    rows = read(data)
    matched = match((row.id for row in rows), name_answers(rows, answers))
    credits = [
        credit_by_position(processed(matched.texts.get(row.id, "")), [processed(answer) for answer in row.answers])
        for row in rows
    ]
    figures = {"accuracy": share(credits, [row.image for row in rows])}
    by_id = {row.id: credit for row, credit in zip(rows, credits, strict=True)}
    expected = {row.id: most_common(row.answers) for row in rows}
    return Score("accuracy", figures, "images", matched.counts, credits=by_id, expected=expected)
