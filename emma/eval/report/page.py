"""What a report says, apart from its form: `markdown.render` and `html.render` write the same blocks."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Cell:
    """A cell with emphasis or a link; plain cells are strings."""

    text: str
    bold: bool = False
    link: str | None = None


@dataclass(frozen=True)
class Table:
    """`numbers` are the columns that are set flush right. A `folded` table is closed in HTML until it is asked for."""

    title: str
    header: tuple[str, ...]
    rows: Sequence[tuple[str | Cell, ...]]
    numbers: tuple[int, ...] = ()
    folded: bool = False


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str
    link: str | None = None


@dataclass(frozen=True)
class Page:
    """A title and what stands under it."""

    title: str
    blocks: Sequence[Table | Text]

    @property
    def figures(self) -> Table:
        """The first table."""
        return next(block for block in self.blocks if isinstance(block, Table))


def number(figure: dict, bold: bool = False) -> Cell:
    """The figure itself: two decimals, and its scale where that is not percent."""
    scale = figure.get("scale", "percent")
    return Cell(f"{figure['value']:.2f}" + ("" if scale == "percent" else f" {scale}"), bold)


def interval(figure: dict) -> str:
    return "{:.2f} to {:.2f}".format(*figure["interval"]) if figure["interval"] else "-"


def words(value: object) -> str:
    """Any JSON value for a reader: `key value, key value`; `not known` for None."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {words(inner)}" for key, inner in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(map(words, value)) or "none"
    return "not known" if value is None else str(value)


def spoken(name: str) -> str:
    """`pair_accuracy` becomes `pair accuracy`."""
    return name.replace("_", " ")
