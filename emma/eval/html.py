"""Reports as self-contained HTML: figures, how they were made, comparisons, and failures with their pictures."""

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from emma.errors import EmmaError
from emma.eval.pictures import Picture, open_picture

THUMBNAIL = 160  # pixels, longer side
MOST_FAILURES = 60
_STYLE = """
:root{color-scheme:light dark;--ink:#1d2733;--soft:#5b6b7c;--line:#d9e0e7;--back:#fff;--band:#f4f7fa;--bad:#b3261e}
@media(prefers-color-scheme:dark){:root{--ink:#e6ebf0;--soft:#9fb0c0;--line:#36424e;--back:#12181e;--band:#1a222a;
--bad:#f2b8b5}}
body{font:16px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--back);margin:0 auto;
max-width:72rem;padding:1rem}
h1{font-size:1.5rem;margin:.5rem 0}h2{font-size:1.15rem;margin:1.6rem 0 .4rem}p,li{max-width:60rem}
.wide{overflow-x:auto}table{border-collapse:collapse;width:100%;font-size:.92rem}
th,td{padding:.35rem .6rem;border-bottom:1px solid var(--line);text-align:left;vertical-align:top}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
tr.main td{font-weight:600;background:var(--band)}
td.how{overflow-wrap:anywhere;color:var(--soft)}small,.soft{color:var(--soft)}
.card{display:flex;gap:1rem;border-bottom:1px solid var(--line);padding:1rem 0;flex-wrap:wrap}
.card p{margin:.15rem 0}
.card img{max-width:160px;max-height:160px;border:1px solid var(--line)}.card div{flex:1 1 18rem}
.said{color:var(--bad)}pre{white-space:pre-wrap;margin:.2rem 0;font:inherit}
"""


def page(title: str, body: str) -> str:
    """A whole document."""
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{escape(title)}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>{_STYLE}</style>\n</head>\n<body>\n<h1>{escape(title)}</h1>\n{body}\n</body>\n</html>\n"
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[int] = (), main: int = -1) -> str:
    """A table of plain texts; `numbers` are the right-aligned columns, `main` is the row that stands out."""

    def cells(row: Sequence[str], tag: str) -> str:
        return "".join(
            f"<{tag}{' class=n' if i in numbers else ''}>{escape(cell)}</{tag}>" for i, cell in enumerate(row)
        )

    lines = [f"<tr{' class=main' if i == main else ''}>{cells(row, 'td')}</tr>" for i, row in enumerate(rows)]
    return f'<div class="wide"><table><tr>{cells(head, "th")}</tr>{"".join(lines)}</table></div>'


def interval(figure: Mapping[str, Any]) -> str:
    """`12.30 to 14.50`, or a dash."""
    return "{:.2f} to {:.2f}".format(*figure["interval"]) if figure["interval"] else "–"


def value(figure: Mapping[str, Any]) -> str:
    """`12.34 %`, or points."""
    return f"{figure['value']:.2f}{' %' if figure.get('scale', 'percent') == 'percent' else ''}"


def report_page(report: Mapping[str, Any], how: Mapping[str, str], failures: bool) -> str:
    """One run: figures, notes, answers, how it was made."""
    names = list(report["figures"])
    rows = [
        (name.replace("_", " "), value(f), interval(f), f"{f['n']} {f['unit']}")
        for name, f in report["figures"].items()
    ]
    body = table(("figure", "value", "95 % interval", "n"), rows, (1, 2), names.index(report["metric"]))
    body += "".join(f"<p><strong>Note.</strong> {escape(note)}.</p>" for note in report.get("notes", ()))
    if failures:
        body += '<p><a href="failures.html">Failures, worst first</a></p>'
    counts = report["answers"] | report["texts"]
    body += "<h2>Answers</h2>" + table(
        ("", ""), [(name.replace("_", " "), str(count)) for name, count in counts.items()], (1,)
    )
    body += "<h2>How it was made</h2>" + table(("", ""), list(how.items()))
    return page(report["title"], body)


def failures_page(
    title: str,
    rows: Mapping[str, Mapping[str, Any]],
    credits: Mapping[str, float],
    expected: Mapping[str, str],
    pictures: Mapping[str, Sequence[Picture]],
) -> str:
    """Questions without full credit, lowest credit first, with a thumbnail of each picture, at most MOST_FAILURES.

    Args:
        rows: answers by question id, as `predictions.jsonl` holds them.
        credits: 0..1 by question id.
    """
    failed = sorted((id for id in credits if credits[id] < 1), key=lambda id: (credits[id], id))
    shown = failed[:MOST_FAILURES]
    said = f"{len(failed)} of {len(credits)} questions without full credit"
    more = f"; the {len(shown)} worst are shown" if len(shown) < len(failed) else ""
    cards = []
    for id in shown:
        row = rows.get(id, {})
        images = "".join(_thumbnail(picture) for picture in pictures.get(id, ()))
        facts = {
            "answer": row.get("text", "(none)"),
            "expected": expected.get(id, "(not known)"),
            "CLIP read": row.get("instruction"),
            "credit": f"{100 * credits[id]:.0f} %",
        }
        lines = "".join(
            f"<p{' class=said' if name == 'answer' else ''}><small>{name}</small> {escape(str(fact))}</p>"
            for name, fact in facts.items()
            if fact is not None
        )
        cards.append(
            f'<section class="card"><div style="flex:0 0 auto">{images}</div><div><small>{escape(id)}</small>'
            f"<pre>{escape(str(row.get('prompt', '')))}</pre>{lines}</div></section>"
        )
    return page(f"{title}: failures", f"<p>{said}{more}.</p>{''.join(cards)}")


def _thumbnail(picture: Picture) -> str:
    try:
        image = open_picture(picture)
    except EmmaError as error:
        return f"<p class=soft>{escape(str(error))}</p>"
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    content = io.BytesIO()
    image.save(content, "JPEG", quality=80)
    return f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode()}">'


def write(path: Path, text: str) -> None:
    """Write a page.

    Raises:
        EmmaError: the folder cannot be written.
    """
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise EmmaError(f"cannot write {path}: {error.strerror}") from error
