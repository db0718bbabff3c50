"""ScienceQA: school questions with two to five choices, some of them with a picture."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emma.errors import EmmaError
from emma.eval.answers import Answer, match
from emma.eval.scoring.choices import by_category, lettered
from emma.eval.scoring.score import Score, accuracy
from emma.eval.settings import Setting
from emma.eval.tables import find_files, read_json

SCORER = "LLaVA's ScienceQA evaluation"
VERSION = 1
SPLIT = Setting(
    "split", "test", ("test", "val", "minitest", "minival", "train"), ("questions", "score"), "of pid_splits"
)
SETTINGS = (SPLIT,)
_STATED = re.compile(r"The answer is ([A-Z]).")


@dataclass(frozen=True)
class Row:
    """A problem; `image` is None for a problem in words."""

    id: str
    question: str
    choices: dict[str, str]
    answer: str
    hint: str
    image: str | None
    split: str
    subject: str


def read(data: Path, split: str = "test") -> list[Row]:
    """Problems of a split, in the order of `pid_splits.json`, from `problems.json`.

    Raises:
        EmmaError: a missing file, split, problem or field.
    """
    problems_file = find_files(data, ("problems.json", "*/problems.json"), "ScienceQA problems")[0]
    splits_file = find_files(data, ("pid_splits.json", "*/pid_splits.json"), "ScienceQA splits")[0]
    problems, splits = read_json(problems_file, "ScienceQA"), read_json(splits_file, "ScienceQA")
    if split not in splits:
        raise EmmaError(f"{splits_file} has no split {split!r}; it has {', '.join(splits)}")
    return [_row(str(id), problems, problems_file) for id in splits[split]]


def _row(id: str, problems: dict[str, Any], file: Path) -> Row:
    try:
        row = problems[id]
        choices = lettered(row["choices"])
        return Row(
            id,
            str(row["question"]),
            choices,
            list(choices)[int(row["answer"])],
            str(row.get("hint") or ""),
            row.get("image") or None,
            str(row.get("split", "")),
            str(row.get("subject", "")),
        )
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise EmmaError(f"{file}: problem {id} lacks a field or is not there ({error!r})") from error


def with_image(data: Path, rows: list[Row]) -> set[str]:
    """Ids of the problems that the model was shown a picture for: those of LLaVA's question file, where it is in `data`
    and has any, else the problems that have one."""
    files = sorted(Path(data).glob("llava_*CQM-A.json"))
    if files:
        recorded = {
            str(row["id"])
            for row in read_json(files[0], "ScienceQA")
            if any("<image>" in turn.get("value", "") for turn in row.get("conversations", []))
        }
        if recorded:
            return recorded
    return {row.id for row in rows if row.image}


def parse(text: str) -> str | None:
    """The letter of an answer: a bare A to E; one that begins with `A. `; or the only `The answer is A` that any
    further character follows. None: failed."""
    if text in ("A", "B", "C", "D", "E"):
        return text
    if len(text) >= 3 and text[0] in "ABCDE" and text[1:3] == ". ":
        return text[0]
    stated = _STATED.findall(text)
    return stated[0] if len(stated) == 1 else None


def score(data: Path, answers: list[Answer], split: str = "test") -> Score:
    """IMG accuracy (primary): over the answered problems with a picture. Total accuracy: over all problems, a missing
    answer being wrong. By subject. A letter beyond a problem's choices is wrong."""
    rows = read(data, split)
    matched = match((row.id for row in rows), answers)
    right = [parse(matched.texts.get(row.id, "")) == row.answer for row in rows]
    shown = with_image(data, rows)
    images = [ok for ok, row in zip(right, rows, strict=True) if row.id in shown and row.id in matched.texts]
    ids = [row.id for row in rows]
    figures = {
        "image_accuracy": accuracy(images, list(range(len(images)))),
        "accuracy": accuracy(right, ids),
    }
    figures |= by_category(right, ids, [row.subject for row in rows])
    credits = dict(zip(ids, map(float, right), strict=True))
    expected = {row.id: row.answer for row in rows}
    return Score("image_accuracy", figures, "questions", matched.counts, credits=credits, expected=expected)
