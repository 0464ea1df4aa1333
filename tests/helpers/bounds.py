"""Limits for calls with hostile input: time, memory, and only this project's errors."""

import contextlib
import resource
import signal
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from flux_jax.errors import EraseError

# CPU time, since other programs may run too; a wait may take this many times as long.
SECONDS, WAIT = 5.0, 12
BYTES = 2 << 30
STATM = Path("/proc/self/statm")


class Hangs(BaseException):
    """Not caught by `except Exception`."""


@contextlib.contextmanager
def bounded(seconds: float = SECONDS, limit: int = BYTES) -> Iterator[None]:
    """Interrupt a call that takes too long; if the system reports sizes, limit memory too."""

    def ends(number: int, frame: FrameType | None) -> None:
        del number, frame
        raise Hangs(f"not done after {seconds:g} s")

    before = resource.getrlimit(resource.RLIMIT_AS)
    if STATM.exists():
        used = int(STATM.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + limit, before[1]))
    timers = {signal.SIGPROF: signal.ITIMER_PROF, signal.SIGALRM: signal.ITIMER_REAL}
    former = {number: signal.signal(number, ends) for number in timers}
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.setitimer(signal.ITIMER_REAL, WAIT * seconds)
    try:
        yield
    finally:
        for number, timer in timers.items():
            signal.setitimer(timer, 0)
            signal.signal(number, former[number])
        resource.setrlimit(resource.RLIMIT_AS, before)


@contextlib.contextmanager
def tells_or_works(seconds: float = SECONDS, limit: int = BYTES) -> Iterator[None]:
    """The property of every input: the call succeeds, or raises an error of this project."""
    with bounded(seconds, limit):
        caught = None
        try:
            yield
        except EraseError as error:
            caught = error
        assert caught is None or str(caught).strip()
