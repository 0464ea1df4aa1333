"""Tables and lines on the terminal, which show text from files as it is.

rich reads square brackets as markup and `:name:` as emoji, and passes escape codes on. Here all
strings are plain text.
"""

import re
from typing import Any

from rich import table as rich_table
from rich.console import Console
from rich.text import Text

from flux_jax.errors import printable

# What is neither markup nor emoji for rich.
PLAIN = re.compile(r"[\w .,;+%()<>=/“”–→-]*")


def plain(text: str, style: str = "") -> Text:
    """A text for rich that is shown as it is; control characters are escaped."""
    return Text(printable(text), style)


class Table(rich_table.Table):
    """rich's table with cells, headings, title and caption of plain text."""

    def __init__(self, *headings: str, title: str = "", caption: str = "", **settings: Any):
        """Takes the columns' headings, and settings of rich's table.

        Args:
            *headings: of columns.
            title: above the table; empty for none.
            caption: below the table; empty for none.
            **settings: of rich's table.
        """
        super().__init__(
            title=plain(title, "table.title") if title else None,
            caption=plain(caption, "table.caption") if caption else None,
            **settings,
        )
        for heading in headings:
            self.add_column(heading)

    def add_column(self, header: Any = "", footer: Any = "", **settings: Any) -> None:
        """Adds a column.

        Args:
            header: its heading, a text.
            footer: a text below it.
            **settings: of rich's column.
        """
        super().add_column(plain(header), plain(footer), **settings)

    def add_row(self, *cells: Any, **settings: Any) -> None:
        """Adds a row of texts.

        Args:
            *cells: the texts.
            **settings: of rich's row.
        """
        texts = (cell if PLAIN.fullmatch(cell) else plain(cell) for cell in cells)
        super().add_row(*texts, **settings)


def show(*parts: Table | str, console: Console | None = None) -> None:
    """Prints tables and lines.

    Args:
        *parts: printed one after another.
        console: stdout by default.
    """
    console = console or Console()
    for part in parts:
        console.print(plain(part) if isinstance(part, str) else part)
