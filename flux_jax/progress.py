"""Progress of long work: a bar on a terminal, plain lines in a log.

Iterations in which a program is compiled take far longer than the others. So the rate, and with it
the time that is left, comes from the others; until there is one, both are "?".
"""

import sys
import time
from collections.abc import Callable, Iterable
from typing import Any, TypeVar, cast

from tqdm import tqdm

T = TypeVar("T")

FORMAT = (
    "{desc}: {n_fmt} of {total_fmt} ({percentage:.0f} %), {rate_fmt}, {elapsed} gone, "
    "{remaining} left{postfix}"
)
COMPILING = "compiling"
FORMAT_COMPILING = f"{{desc}}: {{n_fmt}} of {{total_fmt}}, {COMPILING}"
# A line comes after so many seconds; or after this share of the work, but no sooner than that.
SECONDS, SHARE, SOONEST = 30.0, 0.1, 2.0
# How much an iteration counts in the rate, once there is another: the last fifty or so count.
KEPT = 0.98


class Pace:
    """How fast work goes, but for iterations in which something was compiled."""

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        """Begins the first iteration.

        Args:
            clock: tells the time in seconds.
        """
        self._clock, self._began = clock, clock()
        self._items, self._seconds, self._compiled = 0.0, 0.0, False

    def compiles(self) -> None:
        """Leaves out the iteration that goes on."""
        self._compiled = True

    def iterated(self, items: float) -> None:
        """Ends an iteration, and begins the next.

        Args:
            items: how many it did.
        """
        now = self._clock()
        if not self._compiled:
            self._items = KEPT * self._items + items
            self._seconds = KEPT * self._seconds + now - self._began
        self._began, self._compiled = now, False

    @property
    def rate(self) -> float | None:
        """Items a second, the last iterations counting most; None if none counts yet."""
        return self._items / self._seconds if self._items and self._seconds else None


class Bar(tqdm):
    """A bar on a terminal, which says when a program is compiled."""

    def __init__(self, *args: Any, clock: Callable[[], float] = time.monotonic, **settings: Any):
        """Takes what `tqdm` takes, and a clock that tells the time in seconds."""
        self._clock, self._pace, self._compiling = clock, Pace(clock), False
        super().__init__(*args, **settings)

    def compiles(self) -> None:
        """Tells that a program is being compiled."""
        self._pace.compiles()
        self._compiling = True
        self.refresh()

    def compiled(self) -> None:
        """Tells that it is."""
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
        """What a bar or a line is made of."""
        known = super().format_dict
        # To tqdm None is what it finds itself, on the whole, and 0 is "?".
        over = self.disable or self.n == self.total
        rate = self._pace.rate or (None if over else 0)
        postfixes = [COMPILING if self._compiling else None, known.get("postfix")]
        return {**known, "rate": rate, "postfix": ", ".join(filter(None, postfixes))}


class Lines(Bar):
    """Says how far work is in lines of their own: no carriage returns, no control characters."""

    # The monitor would refresh bars that stand still, each time with a line.
    monitor_interval = 0

    def __init__(self, *args: Any, clock: Callable[[], float] = time.monotonic, **settings: Any):
        """Takes what `Bar` takes."""
        self._said, self._said_at = settings.get("initial", 0), clock()
        self._told = False
        often = {"mininterval": 0, "miniters": 1, "bar_format": FORMAT}
        super().__init__(*args, clock=clock, **settings | often)
        # With no printer of its own tqdm writes nothing when it closes.
        self.sp = None

    def compiles(self) -> None:
        """Tells that a program is being compiled, once an iteration."""
        super().compiles()
        if not self.disable and not self._told:
            self._told = True
            self._write(self.format_meter(**self.format_dict | {"bar_format": FORMAT_COMPILING}))

    def update(self, n: float | None = 1) -> bool | None:
        """Ends an iteration of n items."""
        self._told = False
        return super().update(n)

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Writes a line, if it is time for one."""
        waited, more = self._clock() - self._said_at, self.n - self._said
        enough = self.total and more >= SHARE * self.total and waited >= SOONEST
        if more and (enough or waited >= SECONDS):
            self._say()

    def clear(self, *_: Any, **__: Any) -> None:
        """There is nothing to clear: lines stay."""

    def close(self) -> None:
        """Writes the last line, but not that of a part of other work."""
        leave = self.pos == 0 if self.leave is None else self.leave
        due = not self.disable and leave and self.n != self._said
        super().close()
        if due:
            self._say()

    def _say(self) -> None:
        self._said, self._said_at = self.n, self._clock()
        self._write(str(self))

    def _write(self, line: str) -> None:
        # Rates are padded to stand still on a terminal.
        self.fp.write(f"{' '.join(line.split())}\n")
        self.fp.flush()


def kind() -> type[Bar]:
    """The class of bars that suits stderr."""
    return Bar if sys.stderr.isatty() else Lines


def bar(iterable: Iterable[T] | None = None, **settings: Any) -> Bar:
    """A bar on a terminal; where stderr is none, lines.

    Args:
        iterable: what to go through.
        **settings: of tqdm.
    """
    return kind()(cast(Any, iterable), **settings)
