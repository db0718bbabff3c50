"""POPE: is this object in the image? Yes/no figures for three ways of choosing the absent objects."""

import json
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from emma.errors import EmmaError
from emma.eval.answers import Answer, match
from emma.eval.scoring import yesno
from emma.eval.scoring.score import Score, figure

SCORER = "POPE's yes/no rule, mean F1 over the categories"
VERSION = 1
CATEGORIES = ("random", "popular", "adversarial")
# LLaVA numbers the files through by adding these to the files' own question_id, which start from 1 in each.
OFFSETS = {"adversarial": 0, "random": 10_000_000, "popular": 20_000_000}


@dataclass(frozen=True)
class Row:
    """A question. `id` is LLaVA's number, unique over the categories; `own_id` the question_id of its own file."""

    id: str
    own_id: str
    category: str
    image: str
    question: str
    label_no: bool


def read(data: Path) -> list[Row]:
    """Rows of `coco_pope_{random,popular,adversarial}.json` (JSON lines) in `data`, `data/coco` or `data/output/coco`.

    One or two of the files are read as they are. A suffix after a newline (LLaVA's rows) is cut off. Where LLaVA's
    `llava_pope_test.jsonl` stands in `data`, its ids are used, after a check that it lists the same questions.
    """
    data = Path(data)
    for folder in (data, data / "coco", data / "output" / "coco"):
        files = {category: folder / f"coco_pope_{category}.json" for category in CATEGORIES}
        rows = [_row(row, c, n, path) for c, path in files.items() if path.is_file() for n, row in _lines(path)]
        if rows:
            break
    else:
        raise EmmaError(f"no POPE questions in {data}: expected coco_pope_{{{','.join(CATEGORIES)}}}.json there")
    if (renamed := data / "llava_pope_test.jsonl").is_file():
        rows = _with_llava_ids(rows, renamed)
    twice = [id for id, times in Counter(row.id for row in rows).items() if times > 1]
    if twice:
        raise EmmaError(f"{data}: question_id {twice[0]} occurs more than once in a category")
    return rows


def _lines(path: Path) -> list[tuple[int, dict]]:
    """(line number, row) for JSON lines; a file that is one JSON list is read too."""
    try:
        text = path.read_text(encoding="utf-8").strip()
        if text.startswith("["):
            return list(enumerate(json.loads(text), 1))
        return [(n, json.loads(line)) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
    except (OSError, ValueError) as error:
        raise EmmaError(f"cannot read POPE's questions {path}: {error}") from error


def _row(row: dict, category: str, number: int, path: Path) -> Row:
    try:
        own = int(row.get("question_id", number))
        question = row["text"].split("\n")[0].strip()
        label = {"yes": False, "no": True}[row["label"].strip().lower()]
        return Row(str(own % 10_000_000 + OFFSETS[category]), str(own), category, row["image"], question, label)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise EmmaError(
            f"{path} row {number}: expected question_id, image, text, label yes or no; got {row}"
        ) from error


def _with_llava_ids(rows: list[Row], path: Path) -> list[Row]:
    """`rows` with the ids of LLaVA's question file; both files list the same questions in the same order."""
    numbered: dict[str, list[dict]] = {category: [] for category in CATEGORIES}
    for _, row in _lines(path):
        numbered.setdefault(row.get("category", ""), []).append(row)
    result = []
    for category in CATEGORIES:
        ours, theirs = [row for row in rows if row.category == category], numbered[category]
        same = [r["text"].split("\n")[0].strip() == row.question for r, row in zip(theirs, ours, strict=False)]
        if ours and (len(ours) != len(theirs) or not all(same)):
            raise EmmaError(
                f"{path} lists {len(theirs)} {category} questions and coco_pope_{category}.json {len(ours)}, or in "
                "another order: they are of different versions. Use both of one version, or take the jsonl away"
            )
        result += [replace(row, id=str(r["question_id"])) for row, r in zip(ours, theirs, strict=True)]
    return result


def name_answers(rows: list[Row], answers: list[Answer]) -> list[Answer]:
    """`answers` with unique ids, LLaVA's.

    An answer with a `category` field names its file; otherwise LLaVA's ids, and ids that occur in one file only, are
    taken as they are. Ids that the files share (1, 2, ...) are read as POPE's script reads them, by position: one run
    through the ids for each file, in the order random, popular, adversarial. Any other use of them is LLaVA's.
    """
    owners: dict[str, dict[str, str]] = {}
    for row in rows:
        owners.setdefault(row.own_id, {})[row.category] = row.id
    ids = {row.id for row in rows}
    present = [category for category in CATEGORIES if any(row.category == category for row in rows)]
    runs: list[set] = [set()]
    run_of = {}
    for position, answer in enumerate(answers):
        if "category" not in answer.fields and answer.id in owners:
            if answer.id in runs[-1]:
                runs.append(set())
            runs[-1].add(answer.id)
            run_of[position] = len(runs) - 1
    by_position = len(runs) == len(present) and not any(a.id in ids and a.id not in owners for a in answers)

    def name(position: int, answer: Answer) -> str | None:
        if answer.id is None:
            return None
        of_id = owners.get(answer.id, {})
        if "category" in answer.fields:
            category = answer.fields["category"]
            return of_id.get(category, answer.id if answer.id in ids else f"{category}/{answer.id}")
        if len(of_id) == 1:
            return next(iter(of_id.values()))
        if by_position and position in run_of:
            return of_id.get(present[run_of[position]], answer.id)
        return answer.id

    return [replace(a, id=name(i, a)) for i, a in enumerate(answers)]


def score(data: Path, answers: list[Answer]) -> Score:
    """Mean F1 (primary) and mean accuracy over the categories, and five figures for each category.

    As in POPE's script the figures are over the questions that have an answer; `answers.missing` says how many have
    none. The bootstrap draws images: the questions about one image are not independent.
    """
    rows = read(data)
    matched = match((row.id for row in rows), name_answers(rows, answers))
    present = [category for category in CATEGORIES if any(row.category == category for row in rows)]
    images = {image: i for i, image in enumerate(dict.fromkeys(row.image for row in rows))}
    counts = np.zeros((len(images), len(present), 4))
    for row in rows:
        if row.id in matched.texts:
            outcome = yesno.outcome(yesno.is_no(matched.texts[row.id]), row.label_no)
            counts[images[row.image], present.index(row.category)] += outcome
    flat, n = counts.reshape(len(images), -1), int(counts.sum())
    figures = {}
    for name in ("f1", "accuracy"):

        def mean(sums, rule=yesno.FIGURES[name]):
            return np.mean([rule(sums[:, 4 * k : 4 * k + 4]) for k in range(len(present))], axis=0)

        figures[f"mean_{name}"] = figure(flat, mean, n, "questions")
    for k, category in enumerate(present):
        of_category = counts[:, k]
        for name, rule in yesno.FIGURES.items():
            figures[f"{category}/{name}"] = figure(of_category, rule, int(of_category.sum()), "questions")
    answered = [row for row in rows if row.id in matched.texts]
    credits = {row.id: float(yesno.is_no(matched.texts[row.id]) == row.label_no) for row in answered}
    expected = {row.id: "no" if row.label_no else "yes" for row in answered}
    return Score("mean_f1", figures, "images", matched.counts, credits=credits, expected=expected)
