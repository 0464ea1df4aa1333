"""A row of the table of torture tests."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """How often something was tried, and how often it held.

    Attributes:
        what: in words.
        tried: number of tries.
        held: number of tries that ended as they should.
        seconds: duration of all tries.
        peak_mb: largest memory of a process in MB (10⁶ bytes); None if it was not measured.
        note: on tries that did not hold, or on the figures.
    """

    what: str
    tried: int
    held: int
    seconds: float
    peak_mb: float | None = None
    note: str = ""
