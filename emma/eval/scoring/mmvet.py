"""MM-Vet: 218 open questions on integrated skills, graded from 0 to 1 by GPT-4."""

import re
from dataclasses import dataclass, replace
from pathlib import Path

from emma.errors import EmmaError
from emma.eval.answers import Answer, match
from emma.eval.scoring.judge import JUDGE, JUDGE_MODEL, reviewer
from emma.eval.scoring.score import Figure, Score
from emma.eval.scoring.vqa import share
from emma.eval.tables import find_files, read_json

SCORER = "MM-Vet's mean grade"
VERSION = 1
SETTINGS = (JUDGE, JUDGE_MODEL)
_GRADE = re.compile(r"(?:0?\.\d+|1\.0+|1|0)(?!\d)")


@dataclass(frozen=True)
class Row:
    """A question; `capabilities` are the skills that it needs."""

    id: str
    image: str
    question: str
    answer: str
    capabilities: tuple[str, ...]


def read(data: Path) -> list[Row]:
    """Rows of `mm-vet.json`, an object by `v1_N`.

    Raises:
        EmmaError: missing file or field.
    """
    file = find_files(data, ("mm-vet.json", "*/mm-vet.json"), "MM-Vet questions")[0]
    content = read_json(file, "MM-Vet")
    try:
        return [
            Row(id, str(r["imagename"]), str(r["question"]), str(r["answer"]), tuple(r.get("capability") or ()))
            for id, r in content.items()
        ]
    except (AttributeError, KeyError, TypeError) as error:
        raise EmmaError(f"{file}: expected v1_N -> imagename, question, answer, capability ({error!r})") from error


def grade(review: str) -> float | None:
    """The first number from 0 to 1 in a review; None: there is none."""
    found = _GRADE.search(review.strip())
    return float(found[0]) if found else None


def score(data: Path, answers: list[Answer], judge: str = "none", judge_model: str = "gpt-4-0613") -> Score:
    """Mean grade in percent (primary), and over the questions that need each capability. A question without an answer
    or a grade counts 0 and is counted. LLaVA's ids without `v1_` are taken too."""
    rows = read(data)
    named = [replace(a, id=f"v1_{a.id}") if a.id is not None and not a.id.startswith("v1_") else a for a in answers]
    matched = match((row.id for row in rows), named)
    review = reviewer(judge, judge_model, "MM-Vet")
    if judge.startswith("http"):
        raise EmmaError(
            "MM-Vet's grading prompt is part of its own evaluation, which is not in the data: grade with its script or "
            "web page and give the reviews as judge=FILE.jsonl"
        )
    credits, ungraded = [], 0
    for row in rows:
        text = review(row.id, "", "") if row.id in matched.texts else None
        value = grade(text) if text is not None else None
        ungraded += value is None
        credits.append(value or 0.0)
    figures: dict[str, Figure] = {"score": share(credits, [row.image for row in rows])}
    for skill in dict.fromkeys(skill for row in rows for skill in row.capabilities):
        chosen = [i for i, row in enumerate(rows) if skill in row.capabilities]
        figures[f"{skill}/score"] = share([credits[i] for i in chosen], [rows[i].image for i in chosen])
    return Score("score", figures, "images", matched.counts | {"ungraded": ungraded}, (f"judge: {judge}",))
