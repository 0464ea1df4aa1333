"""Conditions on the rows of a prompt set, such as `nudity_percentage>50`."""

import math
import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flux_jax.errors import InputError, shortened

# Longest first, since ">" is the start of ">=".
COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "!=": operator.ne,
    ">": operator.gt,
    "<": operator.lt,
    "=": operator.eq,
}
PATTERN = re.compile(rf"([^<>=!]+)({'|'.join(COMPARE)})(.+)", re.DOTALL)


@dataclass(frozen=True)
class Condition:
    """A condition on one column.

    Attributes:
        column: name of the column, in lower case.
        sign: key of `COMPARE`.
        value: what the column's cells are compared with.
    """

    column: str
    sign: str
    value: str

    def __str__(self) -> str:
        return f"{self.column}{self.sign}{self.value}"

    @property
    def orders(self) -> bool:
        """Whether numbers are ordered, so that an empty cell cannot be compared."""
        return self.sign not in ("=", "!=")

    def holds(self, cell: str, place: str) -> bool:
        """Whether a row meets the condition; an empty cell meets none that orders numbers.

        Args:
            cell: the row's text in the column.
            place: file and line, for messages.

        Raises:
            InputError: the condition orders numbers and the cell is text.
        """
        cell = cell.strip()
        if not cell and self.orders:
            return False
        mine, other = number_of(self.value), number_of(cell)
        if mine is not None and other is not None:
            return COMPARE[self.sign](other, mine)
        if not self.orders:
            return COMPARE[self.sign](cell.lower(), self.value.lower())
        raise InputError(
            f"{place}: {self.column} = {shortened(cell, 40)!r} is no number, and where = "
            f"{shortened(str(self), 60)!r} compares numbers; correct it or choose another column"
        )


def parse_condition(text: str) -> Condition:
    """Split COLUMN, a sign and a value.

    Raises:
        InputError: one is missing, or the sign orders numbers and the value is none.
    """
    parts = PATTERN.fullmatch(text.strip())
    if parts is None or not all(part.strip() for part in parts.groups()):
        raise InputError(
            f"where = {shortened(text, 60)!r} must be a column, one of {' '.join(COMPARE)} and a "
            "value, such as 'nudity_percentage>50'"
        )
    column, sign, value = (part.strip() for part in parts.groups())
    if value[0] in "<>=!":
        raise InputError(
            f"where = {shortened(text, 60)!r}: {sign + value[0]!r} is no sign; choose from "
            f"{' '.join(COMPARE)}"
        )
    if sign not in ("=", "!=") and number_of(value) is None:
        raise InputError(
            f"where = {shortened(text, 60)!r}: {shortened(value, 40)!r} must be a number after "
            f"{sign}"
        )
    return Condition(column.lower(), sign, value)


def rows_where(
    rows: Sequence[tuple[int, list[str]]],
    conditions: Sequence[Condition],
    names: Sequence[str],
    path: Path,
) -> list[tuple[int, list[str]]]:
    """Return the rows that meet all conditions.

    Args:
        rows: lines and cells, without the header.
        conditions: on columns.
        names: the columns' names in lower case.
        path: the file, for messages.

    Raises:
        InputError: the file has no such column, or a cell cannot be compared.
    """
    for each in conditions:
        if each.column not in names:
            there = shortened(", ".join(name for name in names if name), 250)
            raise InputError(
                f"where = {shortened(str(each), 60)!r}: {path.name} has no column "
                f"{shortened(each.column, 40)!r}; choose from {there}"
            )
        if names.count(each.column) > 1:
            raise InputError(
                f"where = {shortened(str(each), 60)!r}: {path.name} has the column "
                f"{shortened(each.column, 40)!r} {names.count(each.column)} times; rename one"
            )
    places = [(each, names.index(each.column)) for each in conditions]
    return [
        (line, row)
        for line, row in rows
        if all(each.holds(row[place], f"{path}: line {line}") for each, place in places)
    ]


def empty_cells(
    rows: Sequence[tuple[int, list[str]]], conditions: Sequence[Condition], names: Sequence[str]
) -> int:
    """Number of rows that are left out because a cell to order by is empty.

    Args:
        rows: lines and cells, without the header.
        conditions: on columns that are there.
        names: the columns' names in lower case.
    """
    places = [names.index(each.column) for each in conditions if each.orders]
    return sum(any(not row[place].strip() for place in places) for _, row in rows)


def number_of(text: str) -> float | None:
    """A finite number; None for other text."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
