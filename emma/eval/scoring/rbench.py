"""R-Bench: hallucinated relations, asked about a whole image or about two marked objects."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from emma.errors import EmmaError
from emma.eval.answers import Answer, match
from emma.eval.scoring import yesno
from emma.eval.scoring.score import Figure, Floats, Score, figure
from emma.eval.scoring.yesno_set import Row, credits_of, expected_of, figures_of, label_is_no
from emma.eval.settings import Setting
from emma.eval.tables import find_files, read_json, read_rows

SCORER = "R-Bench's evaluation: POPE's rule, mean over five id lists"
VERSION = 1
LEVEL = Setting("level", "image", ("image", "instance"), ("questions", "score"), "whole images, or two marked objects")
MARKS = Setting(
    "marks",
    "boxes",
    ("boxes", "none"),
    ("questions",),
    "instance level: the two objects in a red and a green box, or unmarked",
)
SETTINGS = (LEVEL, MARKS)
TINY = 0.00001
_QUESTIONS = {"image": "image-level_filterd.json", "instance": "instance-level_filterd.json"}
_LISTS = {"image": "nocaps_image-level_rel_ids_{}.json", "instance": "instance-level_ids_{}.json"}


def read(data: Path, level: str = "image") -> list[Row]:
    """Questions of a level.

    Raises:
        EmmaError: missing file or field.
    """
    try:
        return [
            Row(str(row["question_id"]), str(row["image"]), str(row["text"]).strip(), label_is_no(row["label"]))
            for row in raw_rows(data, level)
        ]
    except KeyError as error:
        raise EmmaError(
            f"{_QUESTIONS[level]}: expected question_id, image, text, label in every row ({error!r})"
        ) from error


def raw_rows(data: Path, level: str) -> list[dict[str, Any]]:
    """The rows as they are; those of instance level name `subject`, `object` and their boxes."""
    return read_rows(find_files(data, (_QUESTIONS[level], f"*/{_QUESTIONS[level]}"), "R-Bench questions"), "R-Bench")


def id_lists(data: Path, level: str) -> list[list[str]]:
    """The five lists of question ids that the figures are means over."""
    lists = []
    for number in range(1, 6):
        name = _LISTS[level].format(number)
        content = read_json(find_files(data, (name, f"*/{name}"), "R-Bench id list")[0], "R-Bench")
        lists.append([str(id["question_id"] if isinstance(id, dict) else id) for id in content])
    return lists


def _with_tiny(above: Callable[[Floats], Floats], below: Callable[[Floats], Floats]) -> Callable[[Floats], Floats]:
    return lambda sums: above(sums) / (below(sums) + TINY)


precision = _with_tiny(lambda s: s[:, 0], lambda s: s[:, 0] + s[:, 1])
recall = _with_tiny(lambda s: s[:, 0], lambda s: s[:, 0] + s[:, 3])


def f1(sums: Floats) -> Floats:
    """2PR / (P + R + 0.00001)."""
    p, r = precision(sums), recall(sums)
    return 2 * p * r / (p + r + TINY)


RULES = {
    "accuracy": yesno.accuracy,
    "precision": precision,
    "recall": recall,
    "f1": f1,
    "yes_ratio": yesno.yes_ratio,
}


def score(data: Path, answers: list[Answer], level: str = "image") -> Score:
    """Means over the five id lists, each over its answered questions; the whole set beside them (`all/...`)."""
    rows = read(data, level)
    matched = match((row.id for row in rows), answers)
    known = {row.id: row for row in rows}
    lists = id_lists(data, level)
    images = {image: i for i, image in enumerate(dict.fromkeys(row.image for row in rows))}
    counts = np.zeros((len(images), 4 * len(lists)))
    for number, ids in enumerate(lists):
        for id in ids:
            if id in known and id in matched.texts:
                outcome = yesno.outcome(yesno.is_no(matched.texts[id]), known[id].label_no)
                counts[images[known[id].image], 4 * number : 4 * number + 4] += outcome
    n = len({id for ids in lists for id in ids if id in known and id in matched.texts})

    def mean(rule: Callable[[Floats], Floats]) -> Callable[[Floats], Floats]:
        return lambda sums: np.mean([rule(sums[:, 4 * k : 4 * k + 4]) for k in range(len(lists))], axis=0)

    figures: dict[str, Figure] = {name: figure(counts, mean(rule), n, "questions") for name, rule in RULES.items()}
    figures |= figures_of(rows, matched.texts, "all/")
    credits, expected = credits_of(rows, matched.texts), expected_of(rows)
    return Score("accuracy", figures, "images", matched.counts, credits=credits, expected=expected)
