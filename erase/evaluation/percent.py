"""Shares as texts, tables and comma-separated values.

The same rounding, to a tenth of a percent, wherever one is shown.
"""

import csv
import io
from collections.abc import Iterable, Sequence

from rich.table import Table

from erase.runtime.results import Share


def in_percent(value: Share | float) -> float:
    """A share in percent.

    Args:
        value: from 0 to 1; or a count with its share, as
            `erase.evaluation.statistics.wilson_interval` gives it.
    """
    return 100 * (value if isinstance(value, int | float) else value["share"])


def number(value: Share | float) -> str:
    """A share in percent without the sign, for tables whose head has it: "12.5"."""
    return f"{in_percent(value):.1f}"


def percent(value: Share | float) -> str:
    """A share in percent: "12.5 %"."""
    return f"{number(value)} %"


def interval(value: Share) -> str:
    """The interval of a count with its share: "8.3 to 17.0 %"."""
    return f"{number(value['low'])} to {percent(value['high'])}"


def points(difference: float) -> str:
    """How much one share is greater than another, in points of percent: "+1.5"."""
    shown = f"{100 * difference:+.1f}"
    return "+0.0" if shown == "-0.0" else shown


def csv_of_shares(headings: Sequence[str], rows: Iterable[tuple[Sequence[str], Share]]) -> str:
    """Counts with their shares as comma-separated values.

    Args:
        headings: of the columns before the numbers.
        rows: what stands in those, and the count, as
            `erase.evaluation.statistics.wilson_interval` gives it.
    """
    columns = ("found", "of", "share", "low", "high")
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow((*headings, *columns))
    for named, value in rows:
        lines.writerow((*named, *(value[column] for column in columns)))
    return text.getvalue()


def number_table(title: str, headings: Sequence[str], left: int = 1) -> Table:
    """A table for the terminal, its first columns to the left, the numbers to the right."""
    table = Table(title=title)
    for index, heading in enumerate(headings):
        table.add_column(heading, justify="left" if index < left else "right")
    return table
