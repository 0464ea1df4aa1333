"""Progress of long work: a bar on a terminal, plain lines in a log.

Iterations that compile a program take far longer than the others. So they are left out of the rate
and of the remaining time; until an iteration counts, both are "?".
"""

import sys
import time
from collections.abc import Callable, Iterable
from typing import Any, TypeVar, cast

from tqdm import tqdm

from flux_jax.errors import fitted, printable, shortened

T = TypeVar("T")

FORMAT = (
    "{desc}: {n_fmt} of {total_fmt} ({percentage:.0f} %), {rate_fmt}, {elapsed} elapsed, "
    "{remaining} left{postfix}"
)
COMPILING = "compiling"
FORMAT_COMPILING = f"{{desc}}: {{n_fmt}} of {{total_fmt}}, {COMPILING}"
# Print a line after SECONDS, or after this SHARE of the work, but no sooner than SOONEST seconds.
SECONDS, SHARE, SOONEST = 30.0, 0.1, 2.0
# Decay of an iteration's weight in the rate with each later one: about the last fifty count.
KEPT = 0.98
# Characters of a bar's title.
LONGEST_TITLE = 80


class Pace:
    """Measures the rate of work, without iterations that compiled something."""

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        """Starts the first iteration.

        Args:
            clock: returns the time in seconds.
        """
        self._clock, self._began = clock, clock()
        self._items, self._seconds, self._compiled = 0.0, 0.0, False

    def compiles(self) -> None:
        """Excludes the current iteration from the rate."""
        self._compiled = True

    def iterated(self, items: float) -> None:
        """Ends an iteration, and starts the next.

        Args:
            items: number of items that the iteration processed.
        """
        now = self._clock()
        if not self._compiled:
            self._items = KEPT * self._items + items
            self._seconds = KEPT * self._seconds + now - self._began
        self._began, self._compiled = now, False

    @property
    def rate(self) -> float | None:
        """Items per second, weighted towards the last iterations; None before the first counts."""
        return self._items / self._seconds if self._items and self._seconds else None


class Bar(tqdm):
    """A bar on a terminal, which shows when a program is being compiled."""

    def __init__(self, *args: Any, clock: Callable[[], float] = time.monotonic, **settings: Any):
        """Takes the arguments of `tqdm`, and a clock that returns the time in seconds."""
        if settings.get("desc"):
            # A concept, or the name of a file.
            settings["desc"] = shortened(printable(settings["desc"]), LONGEST_TITLE)
        self._clock, self._pace, self._compiling = clock, Pace(clock), False
        super().__init__(*args, **settings)

    def compiles(self) -> None:
        """Shows that a program is being compiled."""
        self._pace.compiles()
        self._compiling = True
        self.refresh()

    @classmethod
    def write(cls, s: str, *args: Any, **settings: Any) -> None:
        """Prints a line above the bar, as it is."""
        super().write(fitted(printable(s)), *args, **settings)

    def compiled(self) -> None:
        """Shows that compilation has ended."""
        if self._compiling:
            self._compiling = False
            self.refresh()

    def update(self, n: float | None = 1) -> bool | None:
        """Ends an iteration of n items."""
        self._pace.iterated(n or 0)
        self._compiling = False
        return super().update(n)

    @property
    def format_dict(self) -> Any:
        """The values that a bar or a line is formatted from."""
        known = super().format_dict
        # For tqdm, None means its own average over all iterations, and 0 is displayed as "?".
        over = self.disable or self.n == self.total
        rate = self._pace.rate or (None if over else 0)
        postfixes = [COMPILING if self._compiling else None, known.get("postfix")]
        return {**known, "rate": rate, "postfix": ", ".join(filter(None, postfixes))}


class Lines(Bar):
    """Prints progress as separate lines: no carriage returns, no control characters."""

    # The monitor would refresh bars without progress, and print a line each time.
    monitor_interval = 0

    def __init__(self, *args: Any, clock: Callable[[], float] = time.monotonic, **settings: Any):
        """Takes the arguments of `Bar`."""
        self._said, self._said_at = settings.get("initial", 0), clock()
        self._told = False
        often = {"mininterval": 0, "miniters": 1, "bar_format": FORMAT}
        super().__init__(*args, clock=clock, **settings | often)
        # Without a status printer tqdm writes nothing when it closes.
        self.sp = None

    def compiles(self) -> None:
        """Prints that a program is being compiled, once an iteration."""
        super().compiles()
        if not self.disable and not self._told:
            self._told = True
            self._write(self.format_meter(**self.format_dict | {"bar_format": FORMAT_COMPILING}))

    def update(self, n: float | None = 1) -> bool | None:
        """Ends an iteration of n items."""
        self._told = False
        return super().update(n)

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Prints a line, if it is time for one."""
        waited, more = self._clock() - self._said_at, self.n - self._said
        enough = self.total and more >= SHARE * self.total and waited >= SOONEST
        if more and (enough or waited >= SECONDS):
            self._say()

    def clear(self, *_: Any, **__: Any) -> None:
        """Does nothing: printed lines stay."""

    def close(self) -> None:
        """Prints the last line, unless this is a nested bar that leaves nothing behind."""
        leave = self.pos == 0 if self.leave is None else self.leave
        due = not self.disable and leave and self.n != self._said
        super().close()
        if due:
            self._say()

    def _say(self) -> None:
        self._said, self._said_at = self.n, self._clock()
        self._write(str(self))

    def _write(self, line: str) -> None:
        # On a terminal, rates are padded to a constant width.
        self.fp.write(f"{' '.join(line.split())}\n")
        self.fp.flush()


def kind() -> type[Bar]:
    """The class of progress bar that suits stderr."""
    return Bar if sys.stderr.isatty() else Lines


def bar(iterable: Iterable[T] | None = None, **settings: Any) -> Bar:
    """A bar if stderr is a terminal, else lines.

    Args:
        iterable: the items to iterate over.
        **settings: arguments of tqdm.
    """
    return kind()(cast(Any, iterable), **settings)
