"""Format shares as text, tables and comma-separated values.

All shares are rounded to a tenth of a percent.
"""

from collections.abc import Iterable, Sequence

from convert.tables import Table
from erase.runtime.results import Share
from flux_jax.errors import printable

# What begins a formula, in the usual letters and in those of full width.
FORMULAS = tuple("=+-@\uff1d\uff0b\uff0d\uff20")
# Separators of cells and of lines, and quotes; spreadsheets of some languages separate by ";".
SEPARATORS = frozenset(',;"\n|')


def in_percent(value: Share | float) -> float:
    """Return a share in percent.

    Args:
        value: a number from 0 to 1, or a result of
            `erase.evaluation.statistics.wilson_interval`.
    """
    return 100 * (value if isinstance(value, int | float) else value["share"])


def number(value: Share | float) -> str:
    """Format a share in percent without the sign, for tables with it in the heading: "12.5"."""
    return f"{in_percent(value):.1f}"


def percent(value: Share | float) -> str:
    """Format a share in percent: "12.5 %"."""
    return f"{number(value)} %"


def interval(value: Share) -> str:
    """Format the interval of a share: "8.3 to 17.0 %"."""
    return f"{number(value['low'])} to {percent(value['high'])}"


def points(difference: float) -> str:
    """Format the difference of two shares in percentage points: "+1.5"."""
    shown = f"{100 * difference:+.1f}"
    return "+0.0" if shown == "-0.0" else shown


def csv_of_shares(headings: Sequence[str], rows: Iterable[tuple[Sequence[str], Share]]) -> str:
    """Format counts with their shares as comma-separated values.

    Args:
        headings: headings of the columns before the numbers.
        rows: values of these columns, and the result of
            `erase.evaluation.statistics.wilson_interval`.
    """
    columns = ("found", "of", "share", "low", "high")
    lines = [[*map(csv_cell, (*headings, *columns))]]
    for named, value in rows:
        lines.append([*map(csv_cell, named), *(str(value[column]) for column in columns)])
    return "".join(",".join(line) + "\n" for line in lines)


def csv_cell(text: str) -> str:
    """Format a text as a cell of comma-separated values that spreadsheets take for text.

    A cell that begins like a formula, also after spaces, gets an apostrophe before it. Control
    characters are escaped. Cells with a separator of any kind are in quotes.
    """
    text = printable(text)
    if text.lstrip()[:1] in FORMULAS:
        text = f"'{text}"
    quoted = text.replace('"', '""')
    return f'"{quoted}"' if SEPARATORS & set(text) else text


def number_table(title: str, headings: Sequence[str], left: int = 1) -> Table:
    """Create a table for the terminal: the first `left` columns left-aligned, numbers right."""
    table = Table(title=title)
    for index, heading in enumerate(headings):
        table.add_column(heading, justify="left" if index < left else "right")
    return table
