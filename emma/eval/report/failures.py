"""The page of wrong answers, worst first, with pictures inside the file."""

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from emma.errors import EmmaError
from emma.eval.pictures import Picture, open_picture
from emma.eval.report import html
from emma.eval.scoring.score import Score

LIMIT = 100
SIDE = 320  # pixels of a picture's longer side on the page
_STYLE = """
article { display: flex; flex-wrap: wrap; gap: 1rem; padding: 1rem 0; border-top: 1px solid var(--line); }
.pictures { flex: 0 0 auto; display: flex; flex-wrap: wrap; gap: .5rem; max-width: 100%; align-content: start; }
.pictures img { width: 12rem; max-width: 100%; height: auto; align-self: start; border: 1px solid var(--line); }
.pictures p { width: 12rem; color: var(--faint); }
dl { flex: 1 1 18rem; margin: 0; min-width: 0; }
dt { color: var(--faint); font-size: .8rem; }
dd { margin: 0 0 .4rem; white-space: pre-wrap; overflow-wrap: anywhere; }
.wrong { color: var(--wrong); font-weight: 600; }
.right { color: var(--right); font-weight: 600; }
""".strip()


def write(
    path: Path,
    report: Mapping[str, Any],
    score: Score,
    pictures: Mapping[str, Sequence[Picture]],
    rows: Mapping[str, Mapping[str, Any]],
) -> bool:
    """Write the page to `path`; False, and no page, where the scorer gives single questions no credit.

    `rows` are the lines of the answers file, and `pictures` what the model saw, both by question id.
    """
    if not score.credits:
        path.unlink(missing_ok=True)
        return False
    failed = worst_first(score.credits)
    shown = failed[:LIMIT]
    # Each picture is drawn once, however many questions are about it.
    drawn = {picture: _picture(picture) for picture in {p: None for id in shown for p in pictures.get(id, ())}}
    cards = []
    for id in shown:
        seen = "".join(drawn[picture] for picture in pictures.get(id, ()))
        lines = _lines(id, score.credits[id], rows.get(id, {}), score.expected)
        cards.append(f'<article><div class="pictures">{seen}</div><dl>{lines}</dl></article>')
    said = f"{len(failed)} of {len(score.credits)} questions have less than full credit."
    if len(failed) > LIMIT:
        said += f" {LIMIT} are shown, worst first, equals in the questions' order; predictions.jsonl has all answers."
    body = f'<p>{said}</p>\n<p><a href="report.html">The report</a></p>\n' + "\n".join(cards)
    title = f"{report['title']}: wrong answers of {report['model']['folder']}"
    path.write_text(html.document(title, body, _STYLE), encoding="utf-8")
    return True


def worst_first(credits: Mapping[str, float]) -> list[str]:
    """Ids of the questions with less than full credit, the least first, equals in their order."""
    return sorted((id for id, credit in credits.items() if credit < 1), key=lambda id: credits[id])


def _lines(id: str, credit: float, row: Mapping[str, Any], expected: Mapping[str, str]) -> str:
    """What was asked, read, answered and expected, as a description list."""
    answer = row.get("text", "(none)") or "(empty)"
    lines = [("question", id, ""), ("prompt", row.get("prompt", ""), "")]
    if row.get("instruction") is not None:
        lines.append(("instruction that CLIP read", row["instruction"] or "(empty)", ""))
    lines.append(("answer" if row.get("finished", True) else "answer, cut by max_new_tokens", answer, "wrong"))
    if id in expected:
        lines.append(("expected", expected[id], "right"))
    if credit > 0:
        lines.append(("credit", f"{credit:.2f} of 1", ""))
    kinds = {"": "", "wrong": ' class="wrong"', "right": ' class="right"'}
    return "".join(f"<dt>{escape(name)}</dt><dd{kinds[kind]}>{escape(text)}</dd>" for name, text, kind in lines)


def _picture(picture: Picture) -> str:
    """An `img` that holds the picture, or a sentence where it cannot be read."""
    try:
        image = open_picture(picture)
    except EmmaError as error:
        return f"<p>{escape(str(error))}</p>"
    image.thumbnail((SIDE, SIDE))
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=85)
    data = base64.b64encode(stream.getvalue()).decode()
    return f'<img alt="" width="{image.width}" height="{image.height}" src="data:image/jpeg;base64,{data}">'
