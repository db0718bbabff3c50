"""TextVQA: questions that need reading; agreement with ten annotators, both sides processed."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

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
    names = ("llava_textvqa_val_v051_ocr.jsonl", "*/llava_textvqa_val_v051_ocr.jsonl")
    file = find_files(data, names, "OCR tokens (ocr=none asks without them)")
    try:
        return {(str(row["question_id"]), _question_in(row["text"])): row["text"] for row in read_rows(file, "TextVQA")}
    except (AttributeError, KeyError) as error:
        raise EmmaError(f"{file[0]}: expected question_id and text in every row ({error!r})") from error


def _question_in(prompt: str) -> str:
    """LLaVA's prompts begin with the question, or with the OCR tokens and the question after them."""
    lines = prompt.split("\n")
    after_tokens = lines[0].startswith("Reference OCR token:") and len(lines) > 1
    return lines[after_tokens].strip().lower()


def name_answers(rows: list[Row], answers: list[Answer]) -> list[Answer]:
    """Answers under their question_id.

    An image has several questions, and LLaVA's ids are the images'. An answer with a `question` (or LLaVA's `prompt`,
    which holds it) is matched by image and question; others with an image's id then go to the questions that are left
    of it, in file order. A `question` that the image does not have is matched to none.
    """
    of_image: dict[str, list[str]] = {}
    of_question: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        of_image.setdefault(row.image, []).append(row.id)
        of_question.setdefault((row.image, row.question.lower()), []).append(row.id)
    named = [answer.id for answer in answers]
    taken: set[str] = set()

    def take(place: int, candidates: Sequence[str]) -> bool:
        free = next((id for id in candidates if id not in taken), None)
        if free is not None:
            taken.add(free)
            named[place] = free
        return free is not None

    in_order = []
    for place, answer in enumerate(answers):
        asked = answer.fields.get("question", answer.fields.get("prompt"))
        candidates = of_question.get((answer.id or "", _question_in(asked)), []) if isinstance(asked, str) else []
        if candidates:
            if not take(place, candidates):
                named[place] = candidates[-1]  # answered again
        elif "question" not in answer.fields:
            in_order.append(place)
    for place in in_order:
        take(place, of_image.get(answers[place].id or "", []))
    return [replace(answer, id=id) for answer, id in zip(answers, named, strict=True)]


def score(data: Path, answers: list[Answer]) -> Score:
    """Accuracy over all questions: one without an answer counts as an empty one (LLaVA's script leaves it out)."""
    rows = read(data)
    if empty := [row.id for row in rows if not row.answers]:
        raise EmmaError(f"TextVQA question {empty[0]} has no answers")
    matched = match((row.id for row in rows), name_answers(rows, answers))
    credits = [
        credit_by_position(processed(matched.texts.get(row.id, "")), [processed(answer) for answer in row.answers])
        for row in rows
    ]
    figures = {"accuracy": share(credits, [row.image for row in rows])}
    by_id = {row.id: credit for row, credit in zip(rows, credits, strict=True)}
    expected = {row.id: most_common(row.answers) for row in rows}
    return Score("accuracy", figures, "images", matched.counts, credits=by_id, expected=expected)
