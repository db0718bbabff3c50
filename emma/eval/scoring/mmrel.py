"""MMRel: relations between objects (spatial, action, comparative) in real and made pictures; the yes/no part."""

from pathlib import Path
from typing import Any

from emma.errors import EmmaError
from emma.eval.answers import Answer, match
from emma.eval.scoring.score import Score
from emma.eval.scoring.yesno_set import Row, credits_of, expected_of, figures_of, label_is_no
from emma.eval.settings import Setting
from emma.eval.tables import SUFFIXES, read_rows

SCORER = "POPE's yes/no rule and figures (MMRel publishes no scorer)"
VERSION = 1
SUFFIX = Setting(
    "suffix",
    "yes_or_no",
    ("yes_or_no", "short"),
    ("questions",),
    "yes_or_no: `Please answer yes or no.`; short: LLaVA's short-answer suffix",
)
SETTINGS = (SUFFIX,)
RELATIONS = ("spatial", "action", "comparative", "size")


def read(data: Path) -> list[Row]:
    """Yes/no questions of all tables in `json` (or `data`, or the folder itself): question files with question_id,
    image, text and label, whose image's first folder names the domain; or the repackaged rows with question, answer,
    source, eval_type and relation_type. Open questions are left to a judge and not read.

    Raises:
        EmmaError: no table, a missing field, or no yes/no question.
    """
    folders = [folder for folder in (Path(data) / "json", Path(data) / "data", Path(data)) if folder.is_dir()]
    files = next((f for folder in folders if (f := _tables(folder))), [])
    if not files:
        raise EmmaError(f"no MMRel questions in {data}: expected tables in json/ or data/")
    rows = []
    for file in files:
        for number, row in enumerate(read_rows(file, "MMRel")):
            try:
                if (found := _row(row, file, number)) is not None:
                    rows.append(found)
            except KeyError as error:
                expected = "question_id, text or question, label or answer"
                raise EmmaError(f"{file} row {number}: expected {expected} ({error!r})") from error
    if not rows:
        raise EmmaError(f"{data}: MMRel's tables hold no yes/no question")
    if len({row.id for row in rows}) != len(rows):
        rows = [Row(f"{i}", r.image, r.question, r.label_no, r.groups) for i, r in enumerate(rows)]
    return rows


def _tables(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix in SUFFIXES and "Fine-tuning" not in path.parts)


def _row(row: dict[str, Any], file: Path, number: int) -> Row | None:
    text = row["text"] if "text" in row else row["question"]
    label = str(row["label"] if "label" in row else row["answer"]).strip().lower()
    if row.get("eval_type", "discriminative") != "discriminative" or label.rstrip(".") not in ("yes", "no"):
        return None
    image = str(row.get("image", "")) if not isinstance(row.get("image"), dict) else str(row["image"].get("path", ""))
    domain = str(row.get("source") or Path(image).parts[0] if image or row.get("source") else "")
    kind = str(row.get("relation_type") or _named(file))
    groups = tuple(group for group in (domain, kind) if group)
    return Row(str(row.get("question_id", number)), image, str(text).split("\n")[0].strip(), label_is_no(label), groups)


def _named(file: Path) -> str:
    return next((kind for kind in RELATIONS if kind in file.stem.lower()), "")


def score(data: Path, answers: list[Answer]) -> Score:
    """F1 (primary), accuracy, precision, recall and yes-ratio over answered questions; by domain and by relation."""
    rows = read(data)
    matched = match((row.id for row in rows), answers)
    figures = figures_of(rows, matched.texts)
    for group in dict.fromkeys(group for row in rows for group in row.groups):
        figures |= figures_of([row for row in rows if group in row.groups], matched.texts, f"{group}/")
    credits, expected = credits_of(rows, matched.texts), expected_of(rows)
    return Score("accuracy", figures, "images", matched.counts, credits=credits, expected=expected)
