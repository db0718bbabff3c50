"""MMBench, English and Chinese: CircularEval, where a question counts when it is answered rightly under every order of
its options."""

from dataclasses import dataclass
from pathlib import Path

from emma.errors import EmmaError
from emma.eval.answers import Answer, match
from emma.eval.scoring.choices import by_category
from emma.eval.scoring.letters import infer_letter
from emma.eval.scoring.score import Score, accuracy
from emma.eval.settings import Setting
from emma.eval.tables import find_files, read_rows

SCORER = "MMBench circular accuracy, letter by option inference (no ChatGPT)"
VERSION = 1
CYCLE = 1_000_000
FILE = Setting(
    "file",
    "auto",
    None,
    ("questions", "score", "export"),
    "name of the tsv file; auto: the one in the folder (their versions differ in rows)",
)
SETTINGS = (FILE,)
_PATTERNS = {
    "en": ("mmbench_dev_20230712.tsv", "MMBench_DEV_EN*.tsv", "mmbench_dev_en*.tsv", "mmbench_test*.tsv"),
    "cn": ("mmbench_dev_cn_20231003.tsv", "MMBench_DEV_CN*.tsv", "mmbench_dev_cn*.tsv", "mmbench_test_cn*.tsv"),
}
_MISSING = ("", "nan", "None")


@dataclass(frozen=True)
class Row:
    """A row of the tsv: one order of a question's options. `answer` is "" where it is not published."""

    index: int
    question: str
    hint: str
    options: dict[str, str]
    answer: str
    category: str
    wide_category: str
    split: str
    image: str

    @property
    def group(self) -> int:
        """The question that this row is an order of."""
        return self.index % CYCLE


def read(data: Path, language: str = "en", file: str = "auto") -> list[Row]:
    """Rows of the tsv, in order; the pictures stay base64.

    Raises:
        EmmaError: no file, several that fit, or a row without an index.
    """
    patterns = _PATTERNS[language] if file == "auto" else (file,)
    found = find_files(data, patterns, f"MMBench ({language}) rows")
    if len(found) > 1:
        raise EmmaError(
            f"{data} holds several MMBench files: {', '.join(f.name for f in found)}; choose with file=NAME"
        )
    rows = read_rows(found, "MMBench")
    try:
        return [_row(row) for row in rows]
    except (KeyError, ValueError) as error:
        raise EmmaError(f"{found[0]}: expected the columns index, question, A, B, answer ... ({error!r})") from error


def _row(row: dict[str, str]) -> Row:
    options = {letter: row[letter] for letter in "ABCD" if row.get(letter, "") not in _MISSING}
    hint, answer = row.get("hint", ""), row.get("answer", "")
    return Row(
        int(float(row["index"])),
        row["question"],
        "" if hint in _MISSING else hint,
        options,
        "" if answer in _MISSING else answer.strip(),
        row.get("category", ""),
        row.get("l2-category", ""),
        row.get("split", ""),
        row.get("image", ""),
    )


def score_language(data: Path, answers: list[Answer], language: str, file: str) -> Score:
    """Circular accuracy (primary) over groups, vanilla accuracy over rows, and groups by l2-category and category.

    A row without an answer is wrong.
    """
    rows = read(data, language, file)
    if not all(row.answer for row in rows):
        raise EmmaError("this MMBench file has no answers: export a sheet for the server instead")
    matched = match((str(row.index) for row in rows), answers)
    right = [infer_letter(matched.texts.get(str(row.index), ""), row.options) == row.answer for row in rows]
    groups: dict[int, bool] = {}
    for row, ok in zip(rows, right, strict=True):
        groups[row.group] = groups.get(row.group, True) and ok
    first = {row.group: row for row in sorted(rows, key=lambda row: row.index, reverse=True)}
    numbers, whole = list(groups), list(groups.values())
    figures = {
        "circular_accuracy": accuracy(whole, numbers, unit="groups"),
        "vanilla_accuracy": accuracy(right, [row.group for row in rows]),
    }
    for name in ("wide_category", "category"):
        figures |= by_category(whole, numbers, [getattr(first[number], name) for number in numbers], "groups")
    credits = {str(row.index): float(ok) for row, ok in zip(rows, right, strict=True)}
    expected = {str(row.index): row.answer for row in rows}
    return Score("circular_accuracy", figures, "groups", matched.counts, credits=credits, expected=expected)
