"""GQA: compositional questions about scene graphs; one word or phrase, right when it is the answer string."""

import string
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emma.errors import EmmaError
from emma.eval.answers import Answer, match
from emma.eval.scoring.score import Figure, Score
from emma.eval.scoring.vqa import breakdown, share
from emma.eval.settings import Setting
from emma.eval.tables import find_files, read_json, read_rows

SCORER = "GQA's evaluator, accuracy over balanced questions"
VERSION = 1
SPLIT = Setting(
    "split",
    "testdev_balanced",
    ("testdev_balanced", "val_balanced", "testdev_all", "val_all"),
    ("questions", "score"),
    "which questions file",
)
PUNCTUATION = Setting(
    "punctuation",
    "full_stops",
    ("full_stops", "all"),
    ("score",),
    "full_stops: those at the end of a prediction are deleted (LLaVA); all: every mark, on both sides (lmms-eval)",
)
SETTINGS = (SPLIT, PUNCTUATION)
NO_STEP = ("exist", "query: name", "choose name")  # operations that GQA's script does not count as reasoning


@dataclass(frozen=True)
class Row:
    """A question of the questions file; `answer` is empty where LLaVA's file stands in for it."""

    id: str
    question: str
    answer: str
    image: str
    balanced: bool
    structural: str = ""
    semantic: str = ""
    group: str | None = None
    steps: int | None = None


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
                reasoning_steps(row["semantic"]) if "semantic" in row else None,
            )
            for id, row in content.items()
        ]
    except (AttributeError, KeyError, TypeError) as error:
        raise EmmaError(
            f"{file}: expected an object id -> {{question, answer, imageId, types, ...}} ({error!r})"
        ) from error


def read_questions(data: Path, split: str = "testdev_balanced") -> list[Row]:
    """Rows to ask: those of `read`, or, where only LLaVA's `llava_gqa_{split}.jsonl` is there, its questions.

    Raises:
        EmmaError: neither file, or a missing field.
    """
    name, llava = f"{split}_questions.json", f"llava_gqa_{split}.jsonl"
    file = find_files(data, (name, f"*/{name}", llava), "GQA questions")[0]
    if file.name != llava:
        return read(data, split)
    try:
        return [
            Row(str(row["question_id"]), row["text"].split("\n")[0].strip(), "", Path(row["image"]).stem, True)
            for row in read_rows(file, "GQA")
        ]
    except (AttributeError, KeyError, TypeError) as error:
        raise EmmaError(f"{file}: expected question_id, image and text in every row ({error!r})") from error


def reasoning_steps(program: Sequence[Mapping[str, Any]]) -> int:
    """Steps of a question's functional program (its `semantic` field), without those that only read the result off."""
    steps = [f"{step['operation']}: {step['argument']}" for step in program]
    return sum(not any(read_off in step for read_off in NO_STEP) for step in steps)


def predicted(text: str) -> str:
    """The answer as GQA's evaluator is given it by LLaVA: trailing full stops off, lower case, nothing else."""
    return text.rstrip(".").lower()


def without_marks(text: str) -> str:
    """Lower case without any ASCII punctuation."""
    return text.lower().translate(str.maketrans("", "", string.punctuation))


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


def score(data: Path, answers: list[Answer], split: str = "testdev_balanced", punctuation: str = "full_stops") -> Score:
    """Accuracy over balanced questions (primary); binary (structural type other than query) and open; by structural and
    semantic type, by number of words and of reasoning steps; the distribution (a chi-square, no percentage). A missing
    answer is wrong."""
    rows = [row for row in read(data, split) if row.balanced]
    if not rows:
        raise EmmaError(f"GQA {split}: no balanced question in the file")
    matched = match((row.id for row in rows), answers)
    texts = [matched.texts.get(row.id, "") for row in rows]
    predictions = [predicted(text) for text in texts]
    if punctuation == "all":
        right = [float(without_marks(text) == without_marks(row.answer)) for text, row in zip(texts, rows, strict=True)]
    else:
        right = [float(text == row.answer) for text, row in zip(predictions, rows, strict=True)]
    images = [row.image for row in rows]
    figures: dict[str, Figure] = {"accuracy": share(right, images)}
    for kind, is_open in (("binary", False), ("open", True)):
        chosen = [i for i, row in enumerate(rows) if (row.structural == "query") == is_open]
        if chosen:
            figures[kind] = share([right[i] for i in chosen], [images[i] for i in chosen])
    figures |= breakdown(right, images, [row.structural for row in rows])
    figures |= breakdown(right, images, [row.semantic for row in rows])
    words = [f"{len(row.question.split()):02d} words" for row in rows]
    steps = ["" if row.steps is None else f"{row.steps:02d} steps" for row in rows]
    for lengths in (words, steps):
        figures |= dict(sorted(breakdown(right, images, lengths).items()))
    if groups := {row.group for row in rows if row.group is not None}:
        figures["distribution"] = Figure(
            distribution(rows, predictions), len(groups), "groups, lower is better", None, "chi-square"
        )
    by_id = {row.id: credit for row, credit in zip(rows, right, strict=True)}
    return Score("accuracy", figures, "images", matched.counts, credits=by_id, expected={r.id: r.answer for r in rows})
