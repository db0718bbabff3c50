"""Pages as markdown."""

from emma.eval.report.page import Cell, Page, Table, Text


def render(page: Page) -> str:
    """The page, its title first; ends in a newline."""
    return "\n".join([f"# {page.title}", "", *_blocks(page)])


def _blocks(page: Page) -> list[str]:
    lines = []
    for block in page.blocks:
        if isinstance(block, Text):
            lines += [f"[{block.text}]({block.link})" if block.link else block.text, ""]
        elif block.rows:
            lines += [*([f"## {block.title}", ""] if block.title else []), table(block)]
    return lines


def table(block: Table) -> str:
    """A table without its title; ends in a newline."""
    columns = range(len(block.header))
    rule = ("---:" if column in block.numbers else "---" for column in columns)
    rows = [f"| {' | '.join(map(_cell, row))} |" for row in block.rows]
    return "\n".join([f"| {' | '.join(map(_cell, block.header))} |", f"| {' | '.join(rule)} |", *rows]) + "\n"


def _cell(cell: str | Cell) -> str:
    """One line; what would end the cell, or begin an HTML element, is escaped."""
    text = " ".join((cell if isinstance(cell, str) else cell.text).split())
    text = text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")
    if isinstance(cell, str):
        return text
    text = f"**{text}**" if cell.bold else text
    return f"[{text}]({cell.link})" if cell.link else text
