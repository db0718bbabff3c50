"""MathVista (testmini): mathematics with pictures; answers as options, whole numbers, decimal numbers or lists."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emma.errors import EmmaError
from emma.eval.answers import Answer, match
from emma.eval.scoring.choices import LETTERS, by_category
from emma.eval.scoring.score import Score, accuracy
from emma.eval.settings import Setting
from emma.eval.tables import find_files, read_json, read_rows

SCORER = "MathVista's rules without GPT: the raw text where GPT would extract (not comparable with GPT extraction)"
VERSION = 1
SPLIT = Setting("split", "testmini", ("testmini", "test"), ("questions", "score"), "test has no published answers")
QUICK = Setting(
    "quick", "on", ("on", "off"), ("score",), 'on: the official quick extraction, `The answer is "X".` gives X'
)
EMPTY = Setting(
    "empty",
    "similar",
    ("similar", "wrong"),
    ("score",),
    "an empty answer with options: the most similar option (official), or wrong (its ignore_empty_extractions)",
)
INSTRUCTION = Setting(
    "instruction",
    "question",
    ("question", "hint"),
    ("questions",),
    "what the CLIP text tower may read: the question, or the query's first line, a hint, as the released EMMA",
)
SETTINGS = (SPLIT, INSTRUCTION, QUICK, EMPTY)
_QUICK = re.compile(r'The answer is "(.*)"\.')
_BRACKETED = re.compile(r"\(([a-zA-Z])\)")
_COLUMNS = (
    "pid", "question", "image", "choices", "unit", "precision", "answer", "question_type", "answer_type", "metadata",
    "query",
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """A problem. `choices` is empty for a free-form one; `answer` None where it is not published."""

    pid: str
    question: str
    query: str
    choices: tuple[str, ...]
    precision: float | None
    answer: str | None
    question_type: str
    answer_type: str
    metadata: dict[str, Any]
    image: str


def read(data: Path, split: str = "testmini") -> list[Row]:
    """Problems of `data/{split}.json` (an object by pid, with `query.json` beside it where there is one), or of
    the data set's parquet files or their jsonl twins.

    Raises:
        EmmaError: missing file or field.
    """
    patterns = (f"data/{split}.json", f"{split}.json", f"data/{split}-*.parquet", f"{split}-*.parquet")
    files = find_files(data, patterns, "MathVista problems")
    if files[0].suffix == ".json":
        content = read_json(files[0], "MathVista")
        beside = files[0].with_name("query.json")
        queries = read_json(beside, "MathVista") if beside.is_file() else {}
        rows = [{"pid": pid, **row} for pid, row in content.items()]
    else:
        queries, rows = {}, read_rows(files, "MathVista", _COLUMNS)
    try:
        return [_row(row, queries) for row in rows]
    except (KeyError, TypeError, ValueError) as error:
        raise EmmaError(f"{files[0]}: expected question, answer, question_type, answer_type ... ({error!r})") from error


def _row(row: dict[str, Any], queries: dict[str, str]) -> Row:
    pid, answer = str(row["pid"]), row.get("answer")
    precision = row.get("precision")
    return Row(
        pid,
        str(row["question"]),
        str(row.get("query") or queries.get(pid) or ""),
        tuple(map(str, row.get("choices") or ())),
        None if precision in (None, "") else float(precision),
        None if answer in (None, "") else str(answer),
        str(row["question_type"]),
        str(row["answer_type"]),
        row.get("metadata") or {},
        str(row.get("image") or ""),
    )


def extract(text: str, row: Row, quick: bool) -> str:
    """The answer in a text, by the rules that come before GPT in the official script; else the text itself."""
    if not text:
        return ""
    if row.question_type == "multi_choice" and text in row.choices:
        return text
    kind = {"integer": int, "float": float}.get(row.answer_type)
    if kind is not None:
        try:
            return str(kind(text))
        except ValueError:
            pass
    if quick and (stated := _QUICK.search(text)):
        return stated[1]
    return text


def normalise(extracted: str, row: Row, empty: str) -> str | None:
    """The extracted answer as the answer strings are written; None: it cannot be."""
    if row.question_type == "multi_choice":
        extracted = extracted.strip()
        if not extracted and empty == "wrong":
            return None
        if bracketed := _BRACKETED.findall(extracted):
            extracted = bracketed[0].upper()
        letters = LETTERS[: len(row.choices)]
        if len(extracted) == 1 and extracted in letters:
            return row.choices[letters.index(extracted)]
        return most_similar(extracted, row.choices)
    try:
        if row.answer_type == "integer":
            return str(int(float(extracted)))
        if row.answer_type == "float":
            return str(round(float(extracted), int(row.precision or 0)))
    except (ValueError, OverflowError):
        return None
    return extracted


def most_similar(text: str, options: Sequence[str]) -> str | None:
    """The option with the smallest Levenshtein distance, the first of several."""
    return min(options, key=lambda option: edit_distance(text, option), default=None)


def edit_distance(a: str, b: str) -> int:
    """Levenshtein distance: least number of insertions, deletions and substitutions."""
    row = list(range(len(b) + 1))
    for i, left in enumerate(a, 1):
        diagonal, row[0] = row[0], i
        for j, right in enumerate(b, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (left != right))
    return row[-1]


def score(
    data: Path, answers: list[Answer], split: str = "testmini", quick: str = "on", empty: str = "similar"
) -> Score:
    """Accuracy (primary) over all problems, and by question type, answer type and the metadata's groups.

    Right when the normalised answer is the answer string, so that an answer written `2.50` is never reached. A missing
    answer is wrong.
    """
    rows = read(data, split)
    if not all(row.answer is not None for row in rows):
        raise EmmaError(f"MathVista {split} has no published answers; its authors score that split")
    matched = match((row.pid for row in rows), answers)

    def is_right(row: Row) -> bool:
        if row.pid not in matched.texts:
            return False
        return normalise(extract(matched.texts[row.pid], row, quick == "on"), row, empty) == row.answer

    right, ids = [is_right(row) for row in rows], [row.pid for row in rows]
    figures = {"accuracy": accuracy(right, ids)}
    figures |= by_category(right, ids, [row.question_type for row in rows])
    figures |= by_category(right, ids, [f"answer {row.answer_type}" for row in rows])
    for key in ("language", "source", "category", "task", "context", "grade"):
        figures |= by_category(right, ids, [str(row.metadata.get(key) or "") for row in rows])
    for skill in dict.fromkeys(skill for row in rows for skill in row.metadata.get("skills") or ()):
        figures |= by_category(right, ids, [skill if skill in (r.metadata.get("skills") or ()) else "" for r in rows])
    credits = dict(zip(ids, map(float, right), strict=True))
    expected = {row.pid: str(row.answer) for row in rows}
    return Score("accuracy", figures, "problems", matched.counts, credits=credits, expected=expected)
