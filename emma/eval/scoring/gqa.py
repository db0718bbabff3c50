"""GQA: compositional questions about scene graphs; one word or phrase, right when it is the answer string."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from emma.errors import EmmaError
from emma.eval.answers import Answer, match
from emma.eval.scoring.score import Figure, Score
from emma.eval.scoring.vqa import breakdown, share
from emma.eval.settings import Setting
from emma.eval.tables import find_files, read_json

SCORER = "GQA's evaluator, accuracy over balanced questions"
VERSION = 1
SPLIT = Setting(
    "split",
    "testdev_balanced",
    ("testdev_balanced", "val_balanced", "testdev_all", "val_all"),
    ("questions", "score"),
    "which questions file",
)
SETTINGS = (SPLIT,)
SEMANTIC = ("attr", "cat", "global", "obj", "rel")


@dataclass(frozen=True)
class Row:
    """A question of the questions file."""

    id: str
    question: str
    answer: str
    image: str
    balanced: bool
    structural: str
    semantic: str
    group: str | None


def read(data: Path, split: str = "testdev_balanced") -> list[Row]:
    """Rows of `{split}_questions.json`, in `data` or in a folder such as `questions1.2` there.

    Raises:
        EmmaError: missing file or field.
    """
    name = f"{split}_questions.json"
    file = find_files(data, (name, f"*/{name}"), "GQA questions")[0]
    content = read_json(file, "GQA")
    try:
        return [
            Row(
                str(id),
                str(row["question"]).strip(),
                str(row["answer"]),
                str(row["imageId"]),
                bool(row.get("isBalanced", True)),
                str((row.get("types") or {}).get("structural", "")),
                str((row.get("types") or {}).get("semantic", "")),
                (row.get("groups") or {}).get("global"),
            )
            for id, row in content.items()
        ]
    except (AttributeError, KeyError, TypeError) as error:
        raise EmmaError(
            f"{file}: expected an object id -> {{question, answer, imageId, types, ...}} ({error!r})"
        ) from error


def predicted(text: str) -> str:
    """The answer as GQA's evaluator is given it by LLaVA: trailing full stops off, lower case, nothing else."""
    return text.rstrip(".").lower()


def distribution(rows: list[Row], predictions: list[str]) -> float:
    """Chi-square of predicted against gold answers within each global group, weighted by group size, over 100: lower
    is better. Only gold answers of the group are counted."""
    gold: dict[str, Counter[str]] = {}
    said: dict[str, Counter[str]] = {}
    for row, prediction in zip(rows, predictions, strict=True):
        if row.group is not None:
            gold.setdefault(row.group, Counter())[row.answer] += 1
            said.setdefault(row.group, Counter())[prediction] += 1
    weighted, total = 0.0, 0
    for group, counts in gold.items():
        size = sum(counts.values())
        weighted += sum((said[group][answer] - count) ** 2 / count for answer, count in counts.items()) * size
        total += size
    return weighted / total / 100 if total else 0.0


def score(data: Path, answers: list[Answer], split: str = "testdev_balanced") -> Score:
    """Accuracy over balanced questions (primary); binary (structural type other than query) and open; by structural and
    semantic type, by number of words; the distribution (a chi-square, no percentage). A missing answer is wrong."""
    rows = [row for row in read(data, split) if row.balanced]
    if not rows:
        raise EmmaError(f"GQA {split}: no balanced question in the file")
    matched = match((row.id for row in rows), answers)
    predictions = [predicted(matched.texts[row.id]) if row.id in matched.texts else "" for row in rows]
    right = [float(p == row.answer) for p, row in zip(predictions, rows, strict=True)]
    images = [row.image for row in rows]
    figures: dict[str, Figure] = {"accuracy": share(right, images)}
    kinds = ["open" if row.structural == "query" else "binary" for row in rows]
    figures |= {f"{label.split('/')[0]}": f for label, f in breakdown(right, images, kinds).items()}
    figures |= breakdown(right, images, [row.structural for row in rows])
    figures |= breakdown(right, images, [row.semantic for row in rows])
    words = [f"{len(row.question.split()):02d} words" for row in rows]
    figures |= dict(sorted(breakdown(right, images, words).items()))
    groups = np.unique([row.group for row in rows if row.group is not None])
    if len(groups):
        figures["distribution"] = Figure(
            distribution(rows, predictions), len(groups), "groups, lower is better", None, "chi-square"
        )
    by_id = {row.id: credit for row, credit in zip(rows, right, strict=True)}
    return Score("accuracy", figures, "images", matched.counts, credits=by_id, expected={r.id: r.answer for r in rows})
