"""Detect hanging iterations: a lost device, or a process that others wait for."""

import contextlib
import faulthandler
import os
import statistics
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator

from erase.config.schema import Guard
from flux_jax.errors import PreemptedError, say

# The first iterations compile, so their durations are not typical.
WARMUP_ITERATIONS = 3
MEDIAN_WINDOW = 50
MIN_SECONDS = 60.0
POLL_SECONDS = 1.0


class Watchdog:
    """Watch the iterations of a run from a separate thread.

    Attributes:
        min_seconds: duration below which no iteration is reported.
        poll_seconds: seconds between checks.
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
        """Watch within this context."""
        thread = threading.Thread(target=self._watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join()

    @contextlib.contextmanager
    def iteration(self, step: int) -> Iterator[None]:
        """Time one iteration, the body of this context."""
        # Monotonic, since the wall clock may be adjusted.
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
                say(
                    f"iteration {step} has taken {seconds:.0f} s, previous ones {usual:.2f} s: a "
                    "device or another process may hang; current stack:",
                    sys.stderr,
                )
                # Apart, since of many threads the dump leaves the main one out.
                main = sys._current_frames().get(threading.main_thread().ident or 0)
                traceback.print_stack(main, file=sys.__stderr__ or sys.stderr)
                faulthandler.dump_traceback(file=sys.__stderr__ or sys.stderr)
            if seconds > self.settings.patience and reported == step:
                say(
                    f"iteration {step} did not end in guard.patience = {seconds:.0f} s: the "
                    "process ends; the same command resumes from the last checkpoint",
                    sys.stderr,
                )
                self._end(PreemptedError.exit_code)
                return
