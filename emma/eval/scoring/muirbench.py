"""MuirBench: multiple-choice questions about several images, half of them made unanswerable."""

import random
from dataclasses import dataclass
from pathlib import Path

from emma.errors import EmmaError
from emma.eval.answers import Answer, match
from emma.eval.scoring.choices import by_category, lettered
from emma.eval.scoring.mmmu_parse import SEED, parse_letter
from emma.eval.scoring.score import Score, accuracy
from emma.eval.settings import Setting
from emma.eval.tables import find_files, read_rows

SCORER = "MuirBench accuracy by MMMU's letter rule (random letter with seed 42 where none is found)"
VERSION = 1
RULE = Setting(
    "rule",
    "official",
    ("official", "lmms_eval", "equality"),
    ("score",),
    "official: MMMU's rule; lmms_eval: what stands before a leading `A.`, any case; equality: the text is the letter",
)
PROMPT = Setting(
    "prompt",
    "released",
    ("released", "official", "lmms_eval"),
    ("questions",),
    "wording of the options: the released EMMA's, the authors', or lmms-eval's",
)
SETTINGS = (PROMPT, RULE)
_COLUMNS = ("idx", "task", "image_relation", "image_type", "question", "options", "answer", "counterpart_idx")


@dataclass(frozen=True)
class Row:
    """A question with its place (file, row) in the tables, where its pictures are."""

    id: str
    question: str
    options: dict[str, str]
    answer: str
    task: str
    relation: str
    place: tuple[Path, int]


def read(data: Path) -> list[Row]:
    """Rows of `data/test-*.parquet` or its jsonl twins, in order.

    Raises:
        EmmaError: missing file or field.
    """
    rows = []
    for file in find_files(data, ("data/test-*.parquet", "test-*.parquet", "*test*.parquet"), "MuirBench rows"):
        for number, row in enumerate(read_rows(file, "MuirBench", _COLUMNS)):
            try:
                options = lettered(row["options"])
                kind, relation = str(row.get("task") or ""), str(row.get("image_relation") or "")
                asked, answer = str(row["question"]), str(row["answer"]).strip()
                rows.append(Row(str(row["idx"]), asked, options, answer, kind, relation, (file, number)))
            except (KeyError, TypeError) as error:
                raise EmmaError(f"{file} row {number}: expected idx, question, options, answer ({error!r})") from error
    return rows


def _lmms_eval(text: str) -> str:
    head = text.strip()
    return (head.split(".")[0] if "." in head else head).strip().upper()


def score(data: Path, answers: list[Answer], rule: str = "official") -> Score:
    """Accuracy (primary), by task and by relation of the images. A missing answer is wrong."""
    rows = read(data)
    matched = match((row.id for row in rows), answers)
    rng, drawn, right = random.Random(SEED), 0, []
    for row in rows:
        text = matched.texts.get(row.id)
        if text is None:
            right.append(False)
        elif rule == "official":
            letter, at_random = parse_letter(text, row.options, rng)
            drawn += at_random
            right.append(letter == row.answer)
        else:
            right.append((_lmms_eval(text) if rule == "lmms_eval" else text) == row.answer)
    ids = [row.id for row in rows]
    figures = {"accuracy": accuracy(right, ids)}
    figures |= by_category(right, ids, [row.task for row in rows])
    figures |= by_category(right, ids, [row.relation for row in rows])
    credits = dict(zip(ids, map(float, right), strict=True))
    expected = {row.id: row.answer for row in rows}
    return Score(
        "accuracy",
        figures,
        "questions",
        matched.counts | {"drawn_at_random": drawn},
        credits=credits,
        expected=expected,
    )
