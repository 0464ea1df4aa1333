"""Progress of long work: a bar on a terminal, plain lines in a log."""

import sys
import time
from collections.abc import Iterable
from typing import Any, TypeVar, cast

from tqdm import tqdm

T = TypeVar("T")

FORMAT = (
    "{desc}: {n_fmt} of {total_fmt} ({percentage:.0f} %), {rate_fmt}, {elapsed} gone, "
    "{remaining} left{postfix}"
)
# A line comes after so many seconds; or after this share of the work, but no sooner than that.
SECONDS, SHARE, SOONEST = 30.0, 0.1, 2.0


class Lines(tqdm):
    """Says how far work is in lines of their own: no carriage returns, no control characters."""

    # The monitor would refresh bars that stand still, each time with a line.
    monitor_interval = 0

    def __init__(self, *args: Any, **settings: Any):
        """Takes what `tqdm` takes."""
        self._said, self._said_at = settings.get("initial", 0), time.monotonic()
        self._rate: float | None = None
        often = {"mininterval": 0, "miniters": 1, "bar_format": FORMAT}
        super().__init__(*args, **settings | often)
        # With no printer of its own tqdm writes nothing when it closes.
        self.sp = None

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Writes a line, if it is time for one."""
        waited, more = time.monotonic() - self._said_at, self.n - self._said
        enough = self.total and more >= SHARE * self.total and waited >= SOONEST
        if more and (enough or waited >= SECONDS):
            # Since the last line: the first iteration of many is slow, it is compiled.
            self._say(more / waited)

    @property
    def format_dict(self) -> Any:
        """What a line is made of."""
        return {**super().format_dict, "rate": self._rate}

    def clear(self, *_: Any, **__: Any) -> None:
        """There is nothing to clear: lines stay."""

    def close(self) -> None:
        """Writes the last line, but not that of a part of other work."""
        leave = self.pos == 0 if self.leave is None else self.leave
        if not self.disable and leave and self.n != self._said:
            # On the whole.
            self._say(None)
        super().close()

    def _say(self, rate: float | None) -> None:
        self._rate = rate
        self._said, self._said_at = self.n, time.monotonic()
        # Rates are padded to stand still on a terminal.
        self.fp.write(f"{' '.join(str(self).split())}\n")
        self.fp.flush()


def kind() -> "type[tqdm[Any]]":
    """The class of bars that suits stderr."""
    return tqdm if sys.stderr.isatty() else Lines


def bar(iterable: Iterable[T] | None = None, **settings: Any) -> "tqdm[T]":
    """A bar on a terminal; where stderr is none, lines.

    Args:
        iterable: what to go through.
        **settings: of tqdm.
    """
    return kind()(cast(Any, iterable), **settings)
