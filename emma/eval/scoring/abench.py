"""A-Bench: questions about AI-generated images, two to four options."""

from pathlib import Path

from emma.errors import EmmaError
from emma.eval.answers import Answer, match
from emma.eval.scoring.choices import LETTERS, Choice, by_category
from emma.eval.scoring.letters import infer_letter
from emma.eval.scoring.score import Score, accuracy
from emma.eval.settings import Setting
from emma.eval.tables import find_files, read_rows

SCORER = "A-Bench accuracy, letter by option inference"
VERSION = 1
SPLIT = Setting("split", "dev", ("dev", "test"), ("questions", "score"), "answers of test are not published")
RULE = Setting(
    "rule", "inference", ("inference", "equality"), ("score",), "equality: the text is the letter (the released EMMA)"
)
SETTINGS = (SPLIT, RULE)
_COLUMNS = ("id", "question", "option0", "option1", "option2", "option3", "category", "correct_choice")


def read(data: Path, split: str = "dev") -> list[Choice]:
    """Rows of the data set's parquet files (q-future/A-Bench-HF) or their jsonl twin.

    Raises:
        EmmaError: missing file or field.
    """
    files = find_files(
        data, (f"data/{split}-*.parquet", f"{split}-*.parquet", f"*{split}*.parquet", f"{split}.json"), "A-Bench rows"
    )
    try:
        return [_row(row, i) for i, row in enumerate(read_rows(files, "A-Bench", _COLUMNS))]
    except (KeyError, TypeError) as error:
        raise EmmaError(f"{files[0]}: expected id, question, option0 ..., correct_choice ({error!r})") from error


def _row(row: dict, number: int) -> Choice:
    given = [row.get(f"option{i}") for i in range(4)]
    options = {LETTERS[i]: str(option) for i, option in enumerate(given) if option not in (None, "", "N/A")}
    answer = str(row.get("correct_choice") or "").strip()
    return Choice(str(row.get("id", number)), str(row["question"]), options, answer, str(row.get("category") or ""))


def score(data: Path, answers: list[Answer], split: str = "dev", rule: str = "inference") -> Score:
    """Accuracy (primary) and by category, at each of its levels. A missing answer is wrong."""
    rows = read(data, split)
    if not all(row.answer for row in rows):
        raise EmmaError(f"A-Bench {split} has no published answers; its authors take results by e-mail")
    matched = match((row.id for row in rows), answers)
    texts = [matched.texts.get(row.id, "") for row in rows]
    said = [t if rule == "equality" else infer_letter(t, row.options) for t, row in zip(texts, rows, strict=True)]
    right = [letter == row.answer for letter, row in zip(said, rows, strict=True)]
    ids = [row.id for row in rows]
    figures = {"accuracy": accuracy(right, ids)}
    levels = [row.category.split(" -> ") for row in rows]
    for depth in range(1, 1 + max((len(level) for level in levels), default=0)):
        names = [" -> ".join(level[:depth]) if len(level) >= depth else "" for level in levels]
        figures |= by_category(right, ids, names)
    credits = dict(zip(ids, map(float, right), strict=True))
    expected = {row.id: row.answer for row in rows}
    return Score("accuracy", figures, "questions", matched.counts, credits=credits, expected=expected)
