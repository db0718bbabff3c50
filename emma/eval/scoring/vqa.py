"""VQAv2 and OK-VQA: questions and annotations in VQA's own two files, scored by VQA's own evaluator."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from emma.errors import EmmaError
from emma.eval.answers import Answer, match
from emma.eval.scoring.score import Figure, Score, figure, ratio
from emma.eval.scoring.vqa_metric import processed, vqa_credit
from emma.eval.settings import Setting
from emma.eval.tables import find_files, read_json, read_rows

PREDICTIONS = Setting(
    "predictions",
    "processed",
    ("processed", "raw"),
    ("score", "export"),
    "processed: as LLaVA processes answers before upload, which is what the server scores; raw: as they are",
)
UNANIMOUS = Setting(
    "unanimous",
    "as_is",
    ("as_is", "normalised"),
    ("score",),
    "where all annotators wrote one string, as_is compares it as it is (official); normalised: like all others",
)


@dataclass(frozen=True)
class Question:
    """A question; `records` are the annotators' answers, empty where they are not published."""

    id: str
    image_id: int
    text: str
    records: tuple[dict[str, Any], ...] = ()
    question_type: str = ""
    answer_type: str = ""


def read_questions(data: Path, names: Sequence[str], what: str) -> list[Question]:
    """Questions of the first of the files `names`, in its order; one that ends in jsonl holds LLaVA's rows.

    Raises:
        EmmaError: no such file, or it is neither VQA's nor LLaVA's.
    """
    file = find_files(data, names, f"{what} questions")[0]
    if file.suffix == ".jsonl":
        return _llava_questions(file, what)
    rows = _list(read_json(file, what), "questions", file)
    try:
        return [Question(str(row["question_id"]), int(row["image_id"]), str(row["question"]).strip()) for row in rows]
    except (KeyError, TypeError, ValueError) as error:
        raise EmmaError(f"{file}: expected question_id, image_id and question in every row ({error!r})") from error


def _llava_questions(file: Path, what: str) -> list[Question]:
    """Rows `{"question_id", "image": "COCO_test2015_000000000001.jpg", "text": question and suffix on lines}`."""
    try:
        return [
            Question(str(row["question_id"]), int(Path(row["image"]).stem[-12:]), row["text"].split("\n")[0].strip())
            for row in read_rows(file, what)
        ]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise EmmaError(f"{file}: expected question_id, image and text in every row ({error!r})") from error


def read_annotations(data: Path, names: Sequence[str], what: str) -> list[Question]:
    """Annotated questions of the first of the files `names`, in its order, without their text.

    Raises:
        EmmaError: no such file, it is none of VQA's, or a question twice.
    """
    file = find_files(data, names, f"{what} annotations")[0]
    rows = _list(read_json(file, what), "annotations", file)
    try:
        questions = [
            Question(
                str(row["question_id"]),
                int(row.get("image_id", 0)),
                "",
                tuple({**record, "answer": str(record["answer"])} for record in row["answers"]),
                str(row.get("question_type", "")),
                str(row.get("answer_type", "")),
            )
            for row in rows
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise EmmaError(f"{file}: expected question_id and answers [{{answer}}] in every row ({error!r})") from error
    if len({question.id for question in questions}) != len(questions):
        raise EmmaError(f"{file}: a question_id occurs twice")
    if empty := [question.id for question in questions if not question.records]:
        raise EmmaError(f"{file}: question {empty[0]} has no answers")
    return questions


def _list(content: Any, key: str, file: Path) -> list[dict[str, Any]]:
    rows = content.get(key) if isinstance(content, dict) else content
    if not isinstance(rows, list) or not rows:
        raise EmmaError(f"{file}: expected an object with a list {key!r}")
    return rows


def share(credits: Sequence[float], groups: Sequence[Any], unit: str = "questions") -> Figure:
    """Mean credit in percent, resampled by `groups` (images: questions about one are not independent)."""
    number = {group: i for i, group in enumerate(dict.fromkeys(groups))}
    counts = np.zeros((len(number), 2))
    for group, credit in zip(groups, credits, strict=True):
        counts[number[group]] += (credit, 1)
    return figure(counts, lambda sums: ratio(sums[:, 0], sums[:, 1]), len(credits), unit)


def breakdown(
    credits: Sequence[float], groups: Sequence[Any], labels: Sequence[str], kind: str = "accuracy"
) -> dict[str, Figure]:
    """`label/accuracy` for every label that occurs, in order of first occurrence; empty labels are left out."""
    of_label: dict[str, list[int]] = {}
    for i, label in enumerate(labels):
        if label:
            of_label.setdefault(label, []).append(i)
    return {
        f"{label}/{kind}": share([credits[i] for i in chosen], [groups[i] for i in chosen])
        for label, chosen in of_label.items()
    }


def most_common(answers: Iterable[str]) -> str:
    """What most annotators said, the first of several."""
    return Counter(answers).most_common(1)[0][0]


def score_questions(questions: Sequence[Question], answers: list[Answer], predictions: str, unanimous: str) -> Score:
    """Accuracy over all annotated questions, by answer type and by question type.

    A question without an answer counts as an empty one, as LLaVA uploads it.
    """
    matched = match((question.id for question in questions), answers)
    change = processed if predictions == "processed" else str
    normalise_all = unanimous == "normalised"
    credits = [vqa_credit(change(matched.texts.get(q.id, "")), q.records, normalise_all) for q in questions]
    images = [q.image_id or q.id for q in questions]
    figures = {"accuracy": share(credits, images)}
    figures |= breakdown(credits, images, [q.answer_type for q in questions])
    figures |= breakdown(credits, images, [q.question_type for q in questions])
    by_id = dict(zip((q.id for q in questions), credits, strict=True))
    expected = {q.id: most_common(record["answer"] for record in q.records) for q in questions}
    return Score("accuracy", figures, "images", matched.counts, credits=by_id, expected=expected)
