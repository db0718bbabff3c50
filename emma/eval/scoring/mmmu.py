"""MMMU: college questions of 30 subjects, most with options, some open, with one picture or several."""

import ast
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emma.errors import EmmaError
from emma.eval.answers import Answer, match
from emma.eval.scoring.choices import by_category, lettered
from emma.eval.scoring.mmmu_parse import SEED, open_is_right, parse_letter
from emma.eval.scoring.score import Score, accuracy
from emma.eval.settings import Setting
from emma.eval.tables import find_files, read_rows

SCORER = "MMMU's evaluator (random letter with seed 42 where none is found)"
VERSION = 1
SPLIT = Setting(
    "split", "validation", ("validation", "dev", "test"), ("questions", "score", "export"), "test has no answers"
)
SETTINGS = (SPLIT,)
DISCIPLINES = {
    "Art and Design": ("Art", "Art_Theory", "Design", "Music"),
    "Business": ("Accounting", "Economics", "Finance", "Manage", "Marketing"),
    "Science": ("Biology", "Chemistry", "Geography", "Math", "Physics"),
    "Health and Medicine": (
        "Basic_Medical_Science",
        "Clinical_Medicine",
        "Diagnostics_and_Laboratory_Medicine",
        "Pharmacy",
        "Public_Health",
    ),
    "Humanities and Social Science": ("History", "Literature", "Sociology", "Psychology"),
    "Tech and Engineering": (
        "Agriculture",
        "Architecture_and_Engineering",
        "Computer_Science",
        "Electronics",
        "Energy_and_Power",
        "Materials",
        "Mechanical_Engineering",
    ),
}
_DISCIPLINE = {subject: name for name, subjects in DISCIPLINES.items() for subject in subjects}
_COLUMNS = ("id", "question", "options", "answer", "question_type", "subfield")


@dataclass(frozen=True)
class Row:
    """A question. `options` is empty for an open one; `gold` holds a letter, or the accepted open answers."""

    id: str
    question: str
    options: dict[str, str]
    gold: tuple[str, ...]
    place: tuple[Path, int]

    @property
    def subject(self) -> str:
        """`Accounting` of `validation_Accounting_1`."""
        return "_".join(self.id.split("_")[1:-1])


def read(data: Path, split: str = "validation") -> list[Row]:
    """Rows of `{Subject}/{split}-*.parquet` (or their jsonl twins): subjects in the official, alphabetical order.

    Raises:
        EmmaError: missing file or field.
    """
    patterns = (f"*/{split}-*.parquet", f"{split}-*.parquet", f"data/{split}-*.parquet", f"*{split}*.json")
    rows = []
    for file in find_files(data, patterns, "MMMU rows"):
        for number, row in enumerate(read_rows(file, "MMMU", _COLUMNS)):
            try:
                rows.append(_row(row, (file, number)))
            except (KeyError, TypeError, ValueError, SyntaxError) as error:
                raise EmmaError(
                    f"{file} row {number}: expected id, question, options, answer ... ({error!r})"
                ) from error
    return sorted(rows, key=lambda row: row.subject)


def _row(row: dict[str, Any], place: tuple[Path, int]) -> Row:
    options = row.get("options") or []
    options = ast.literal_eval(options) if isinstance(options, str) else list(options)
    answer = row.get("answer")
    opened = row.get("question_type", "multiple-choice") == "open"
    if isinstance(answer, str) and opened and answer.strip().startswith("["):
        answer = ast.literal_eval(answer)
    gold = tuple(map(str, answer)) if isinstance(answer, list) else (str(answer),) if answer not in (None, "?") else ()
    return Row(str(row["id"]), str(row["question"]), {} if opened else lettered(options), gold, place)


def score(data: Path, answers: list[Answer], split: str = "validation") -> Score:
    """Accuracy (primary) over all questions, by discipline and by subject.

    A missing answer is wrong; an answer without a letter is given a random one (`drawn_at_random` counts these).
    """
    rows = read(data, split)
    if not all(row.gold for row in rows):
        raise EmmaError(f"MMMU {split} has no published answers: export a submission file for the server instead")
    matched = match((row.id for row in rows), answers)
    rng, drawn, right = random.Random(SEED), 0, []
    for row in rows:
        if row.id not in matched.texts:
            right.append(False)
        elif row.options:
            letter, at_random = parse_letter(matched.texts[row.id], row.options, rng)
            drawn += at_random
            right.append(letter in row.gold)
        else:
            right.append(open_is_right(row.gold, matched.texts[row.id]))
    ids = [row.id for row in rows]
    figures = {"accuracy": accuracy(right, ids)}
    figures |= by_category(right, ids, [_DISCIPLINE.get(row.subject, "") for row in rows])
    figures |= by_category(right, ids, [row.subject for row in rows])
    credits = dict(zip(ids, map(float, right), strict=True))
    expected = {row.id: " / ".join(row.gold) for row in rows}
    return Score(
        "accuracy",
        figures,
        "questions",
        matched.counts | {"drawn_at_random": drawn},
        credits=credits,
        expected=expected,
    )
