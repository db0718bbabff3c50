"""MMVP: 150 pairs of images that CLIP takes for alike; a pair counts when both of its questions are right."""

import csv
from dataclasses import dataclass
from pathlib import Path

from emma.errors import EmmaError
from emma.eval.answers import Answer, match
from emma.eval.scoring.letters import infer_letter
from emma.eval.scoring.score import Score, accuracy

SCORER = "MMVP pair accuracy, letter by option inference (no judge)"
VERSION = 1


@dataclass(frozen=True)
class Row:
    """A row of Questions.csv; rows 2k-1 and 2k make pair k."""

    index: int
    question: str
    options: dict[str, str]
    answer: str


def read(data: Path) -> list[Row]:
    """Rows of `Questions.csv` in `data`, by index. Some copies spell the first header `lndex`, with a small L."""
    path = Path(data) / "Questions.csv"
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            table = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise EmmaError(f"cannot read MMVP's questions {path}: {error}") from error
    rows = sorted((_row(cells, path, line) for line, cells in enumerate(table, 2)), key=lambda row: row.index)
    indices = [row.index for row in rows]
    if not rows or indices != list(range(1, len(rows) + 1)) or len(rows) % 2:
        raise EmmaError(f"{path}: expected the rows 1 to 2k, each once, found {len(rows)} rows: {str(indices)[:80]}")
    return rows


def _row(cells: dict, path: Path, line: int) -> Row:
    try:
        index = int(cells["Index"] if "Index" in cells else cells["lndex"])
        first, second = cells["Options"].split("(b)")
        answer = {"(a)": "A", "(b)": "B"}[cells["Correct Answer"].strip().lower()]
        options = {"A": first.replace("(a)", "").strip(), "B": second.strip()}
        return Row(index, cells["Question"].strip(), options, answer)
    except (KeyError, ValueError, AttributeError) as error:
        raise EmmaError(
            f"{path} line {line}: expected Index,Question,Options,Correct Answer with options '(a) Left (b) Right' "
            f"and an answer '(a)' or '(b)', got {list(cells.values())}"
        ) from error


def score(data: Path, answers: list[Answer]) -> Score:
    """Pair accuracy (primary) and single accuracy. A question without an answer is wrong."""
    rows = read(data)
    matched = match((str(row.index) for row in rows), answers)
    right = [infer_letter(matched.texts.get(str(row.index), ""), row.options) == row.answer for row in rows]
    pairs = [all(right[i : i + 2]) for i in range(0, len(right), 2)]
    figures = {
        "pair_accuracy": accuracy(pairs, list(range(len(pairs))), unit="pairs"),
        "single_accuracy": accuracy(right, [(row.index - 1) // 2 for row in rows]),
    }
    ids = [str(row.index) for row in rows]
    expected = {id: row.answer for id, row in zip(ids, rows, strict=True)}
    credits = dict(zip(ids, map(float, right), strict=True))
    return Score("pair_accuracy", figures, "pairs", matched.counts, credits=credits, expected=expected)
