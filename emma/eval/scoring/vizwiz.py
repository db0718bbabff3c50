"""VizWiz-VQA: questions of blind people about their own photographs, some of them unanswerable."""

from dataclasses import dataclass, replace
from pathlib import Path

from emma.errors import EmmaError
from emma.eval.answers import Answer, match
from emma.eval.scoring.score import Score
from emma.eval.scoring.vqa import PREDICTIONS, breakdown, most_common, share
from emma.eval.scoring.vqa_metric import VIZWIZ_CONTRACTIONS, credit_by_position, normalise, processed, tidy
from emma.eval.settings import Setting
from emma.eval.tables import find_files, read_rows

SCORER = "VizWiz's evaluator"
VERSION = 1
SPLIT = Setting(
    "split", "val", ("val", "train", "test"), ("questions", "score", "export"), "test is scored by a server"
)
GROUND_TRUTH = Setting(
    "ground_truth",
    "as_is",
    ("as_is", "processed"),
    ("score",),
    "as_is: the annotators' strings as they are (official); processed: both sides by LLaVA's processing (lmms-eval)",
)
SETTINGS = (SPLIT, PREDICTIONS, GROUND_TRUTH)


@dataclass(frozen=True)
class Row:
    """A question; its image's name is its id. Without published answers `answers` is empty."""

    image: str
    question: str
    answers: tuple[str, ...]
    answer_type: str


def read(data: Path, split: str = "val") -> list[Row]:
    """Rows of `Annotations/{split}.json` (or `{split}.json` in `data` itself), in order; where that is absent, LLaVA's.

    Raises:
        EmmaError: missing file or field, or an image twice.
    """
    names = (f"Annotations/{split}.json", f"annotations/{split}.json", f"{split}.json", f"llava_{split}.jsonl")
    file = find_files(data, names, "VizWiz rows")
    rows = read_rows(file, "VizWiz")
    try:
        result = [
            Row(
                row["image"],
                str(row["question"] if "question" in row else row["text"].split("\n")[0]).strip(),
                tuple(str(record["answer"]) for record in row.get("answers") or ()),
                str(row.get("answer_type", "")),
            )
            for row in rows
        ]
    except (AttributeError, KeyError, TypeError) as error:
        raise EmmaError(
            f"{file[0]}: expected image, question and answers [{{answer}}] in every row ({error!r})"
        ) from error
    if len({row.image for row in result}) != len(result):
        raise EmmaError(f"{file[0]}: an image occurs twice, and images are the questions' ids")
    return result


def name_answers(rows: list[Row], answers: list[Answer]) -> list[Answer]:
    """Answers under their image's name; a number that is no image's name is LLaVA's question_id, the row's place."""
    names = {row.image for row in rows}

    def name(id: str | None) -> str | None:
        if id is not None and id not in names and id.isdigit() and int(id) < len(rows):
            return rows[int(id)].image
        return id

    return [replace(answer, id=name(answer.id)) for answer in answers]


def score(
    data: Path,
    answers: list[Answer],
    split: str = "val",
    predictions: str = "processed",
    ground_truth: str = "as_is",
) -> Score:
    """Accuracy (primary) and by answer type. A question without an answer counts as an empty one."""
    rows = read(data, split)
    if not all(row.answers for row in rows):
        raise EmmaError(f"VizWiz {split} has no published answers: export a submission file for the server instead")
    matched = match((row.image for row in rows), name_answers(rows, answers))
    credits = []
    for row in rows:
        text = matched.texts.get(row.image, "")
        if ground_truth == "processed":
            credits.append(credit_by_position(processed(text), [processed(answer) for answer in row.answers]))
            continue
        text = processed(text) if predictions == "processed" else text
        credits.append(credit_by_position(normalise(tidy(text), VIZWIZ_CONTRACTIONS), row.answers))
    images = [row.image for row in rows]
    figures = {"accuracy": share(credits, images)} | breakdown(credits, images, [row.answer_type for row in rows])
    expected = {row.image: most_common(row.answers) for row in rows}
    by_id = dict(zip(images, credits, strict=True))
    return Score("accuracy", figures, "images", matched.counts, credits=by_id, expected=expected)
