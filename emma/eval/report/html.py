"""Pages as one HTML file: no script, nothing loaded from elsewhere, light or dark as the reader's system is."""

from html import escape

from emma.eval.report.page import Cell, Page, Table, Text

STYLE = """
:root { color-scheme: light dark; --line: #d5d9de; --soft: #f4f6f8; --text: #1b1f24; --faint: #59636e; --link: #0759b8;
  --page: #ffffff; --wrong: #b3261e; --right: #1a7f37; }
@media (prefers-color-scheme: dark) { :root { --line: #3a424b; --soft: #1e242b; --text: #e3e8ed; --faint: #9aa5b1;
  --link: #7cb7ff; --page: #12161b; --wrong: #ff8a80; --right: #6fdd8b; } }
body { margin: 0 auto; max-width: 76rem; padding: 1rem; background: var(--page); color: var(--text);
  font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: .5rem 0 1rem; overflow-wrap: anywhere; }
h2, summary { font-size: 1.1rem; font-weight: 600; margin: 1.5rem 0 .5rem; }
summary { cursor: pointer; margin: .8rem 0 .4rem; }
p { max-width: 50rem; margin: .5rem 0; overflow-wrap: anywhere; }
a { color: var(--link); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .7rem; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line);
  min-width: 3rem; max-width: 30rem; overflow-wrap: break-word; }
th { background: var(--soft); font-weight: 600; }
.number { text-align: right; }
td.number { white-space: nowrap; }
""".strip()


def render(page: Page) -> str:
    """The page as a document of its own."""
    return document(page.title, "\n".join(_block(block) for block in page.blocks))


def document(title: str, body: str, style: str = "") -> str:
    """A whole file around `body`, which is HTML already; `style` is added to the common one."""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>
{STYLE}
{style}
</style>
</head>
<body>
<h1>{escape(title)}</h1>
{body}
</body>
</html>
"""


def _block(block: Table | Text) -> str:
    if isinstance(block, Text):
        return f"<p>{_linked(escape(block.text), block.link)}</p>"
    if not block.rows:
        return ""
    body = f'<div class="wide">{_table(block)}</div>'
    if block.folded:
        return f"<details><summary>{escape(block.title)}</summary>{body}</details>"
    return f"<h2>{escape(block.title)}</h2>{body}" if block.title else body


def _table(block: Table) -> str:
    def row(cells: tuple[str | Cell, ...], tag: str) -> str:
        written = []
        for column, cell in enumerate(cells):
            kind = ' class="number"' if column in block.numbers else ""
            written.append(f"<{tag}{kind}>{_cell(cell)}</{tag}>")
        return f"<tr>{''.join(written)}</tr>"

    rows = "\n".join(row(cells, "td") for cells in block.rows)
    return f"<table>\n<thead>{row(block.header, 'th')}</thead>\n<tbody>\n{rows}\n</tbody>\n</table>"


def _cell(cell: str | Cell) -> str:
    if isinstance(cell, str):
        return escape(cell)
    text = f"<b>{escape(cell.text)}</b>" if cell.bold else escape(cell.text)
    return _linked(text, cell.link)


def _linked(text: str, link: str | None) -> str:
    return f'<a href="{escape(link)}">{text}</a>' if link else text
