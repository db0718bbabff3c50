"""Answers files: JSON lines `{"id": ..., "text": raw answer}`, read tolerantly and matched to questions by id."""

import json
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emma.errors import EmmaError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Answer:
    """One line of an answers file. `id` is None and `text` is None when the line or the field cannot be used."""

    id: str | None
    text: str | None
    fields: dict[str, Any]


@dataclass(frozen=True)
class Matched:
    """`texts` maps question id to answer, for the questions that have one; `counts` says what was found in the file."""

    texts: dict[str, str]
    counts: dict[str, int]


def as_id(value: Any) -> str | None:
    """Ids as text, so that 7, 7.0 and "7" are one id; None for what cannot be an id."""
    if isinstance(value, str) and value.strip():
        return value.strip()
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return None


def read_answers(path: Path) -> list[Answer]:
    """All lines in file order, `question_id` standing for `id` where a file has LLaVA's names.

    A line that is no JSON object or has no id becomes an `Answer` without id, which `match` counts as unreadable.
    Raises `EmmaError` when the file cannot be read, or when no line of it can.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig", errors="replace").split("\n")
    except OSError as error:
        raise EmmaError(f"cannot read answers {path}: {error.strerror}") from error
    answers = [_parse(line) for line in lines if line.strip()]
    bad = [i for i, answer in enumerate(answers, 1) if answer.id is None]
    if answers and len(bad) == len(answers):
        raise EmmaError(f'no line of {path} is an answer; expected lines like {{"id": 1, "text": "A"}}')
    if bad:
        log.warning("%s: %d lines are not answers (the first is answer line %d)", path, len(bad), bad[0])
    return answers


def _parse(line: str) -> Answer:
    try:
        row = json.loads(line)
    except json.JSONDecodeError:
        row = None
    if not isinstance(row, dict):
        return Answer(None, None, {})
    text = row.get("text")
    return Answer(as_id(row.get("id", row.get("question_id"))), text if isinstance(text, str) else None, row)


def match(ids: Iterable[str], answers: list[Answer]) -> Matched:
    """Match answers to question `ids`. Of several answers to one question the last holds (as when LLaVA's scripts
    build a dictionary); an answer that is no string is no answer; answers to unknown questions are left out."""
    expected = set(ids)
    texts: dict[str, str] = {}
    counts = dict.fromkeys(("expected", "answered", "missing", "duplicate", "extra", "not_text", "unreadable"), 0)
    seen = set()
    for answer in answers:
        if answer.id is None:
            counts["unreadable"] += 1
        elif answer.id not in expected:
            counts["extra"] += 1
        else:
            counts["duplicate"] += answer.id in seen
            seen.add(answer.id)
            if answer.text is None:
                counts["not_text"] += 1
                texts.pop(answer.id, None)
            else:
                texts[answer.id] = answer.text
    counts |= {"expected": len(expected), "answered": len(texts), "missing": len(expected) - len(texts)}
    return Matched(texts, counts)
