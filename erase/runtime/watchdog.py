"""Notices an iteration that does not end: a lost device, or a process that others wait for."""

import contextlib
import faulthandler
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator

from erase.config.schema import Guard
from flux_jax.errors import PreemptedError

# The first iterations compile, and say nothing of those that follow.
WARMUP_ITERATIONS = 3
MEDIAN_WINDOW = 50
MIN_SECONDS = 60.0
POLL_SECONDS = 1.0


class Watchdog:
    """Looks at the iterations of a run from a thread of its own.

    Attributes:
        min_seconds: seconds that no iteration is suspected before.
        poll_seconds: seconds between looks.
    """

    def __init__(
        self,
        settings: Guard,
        min_seconds: float = MIN_SECONDS,
        poll_seconds: float = POLL_SECONDS,
        end: Callable[[int], None] = os._exit,
    ) -> None:
        self.settings, self.min_seconds, self.poll_seconds, self._end = (
            settings,
            min_seconds,
            poll_seconds,
            end,
        )
        self._took: list[float] = []
        self._running: tuple[int, float] | None = None
        self._over = threading.Event()

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Looks as long as the context lasts."""
        thread = threading.Thread(target=self._watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join()

    @contextlib.contextmanager
    def iteration(self, step: int) -> Iterator[None]:
        """What is done within is an iteration."""
        # The wall clock may be set; this one only goes on.
        began = time.monotonic()
        self._running = step, began
        try:
            yield
        finally:
            self._running = None
            self._took = [*self._took[-MEDIAN_WINDOW:], time.monotonic() - began]

    def _watch(self) -> None:
        reported = None
        while not self._over.wait(self.poll_seconds):
            if (running := self._running) is None or len(self._took) < WARMUP_ITERATIONS:
                continue
            step, began = running
            usual, seconds = statistics.median(self._took), time.monotonic() - began
            if seconds > max(self.min_seconds, self.settings.hung * usual) and reported != step:
                reported = step
                print(
                    f"iteration {step} has taken {seconds:.0f} s, those before {usual:.2f} s: a "
                    "device or another process may hang; this is where it is:",
                    file=sys.stderr,
                )
                faulthandler.dump_traceback(file=sys.__stderr__ or sys.stderr)
            if seconds > self.settings.patience and reported == step:
                print(
                    f"iteration {step} did not end in guard.patience = {seconds:.0f} s: the "
                    "process ends; the same command goes on from the last checkpoint",
                    file=sys.stderr,
                )
                self._end(PreemptedError.exit_code)
                return
