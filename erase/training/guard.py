"""Detect non-finite updates and diverging losses.

The training step skips non-finite updates (`erase.methods.parts.step`); this module detects and
counts them, and writes the messages. `erase.training.replay` repeats such an iteration.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from erase.config.schema import Guard
from erase.runtime.run_folder import SKIPPED, kind_of
from erase.training.metrics import named

# Divergence is checked after `WARMUP_ITERATIONS` values of a loss, with the median of the last
# `MEDIAN_WINDOW`.
WARMUP_ITERATIONS, MEDIAN_WINDOW = 50, 20


def non_finite(metrics: Mapping[str, float]) -> list[str]:
    """Return the names of the non-finite metrics."""
    return [name for name, value in metrics.items() if not math.isfinite(value)]


class Tally:
    """History of the metrics of one run.

    Attributes:
        skipped: number of consecutive iterations with a skipped update.
    """

    def __init__(self, settings: Guard, skipped: int = 0) -> None:
        self.skipped = skipped
        self._settings = settings
        self._history: dict[str, list[float]] = {}
        self._reported: set[str] = set()

    def count(self, metrics: Mapping[str, float]) -> bool:
        """Record an iteration's metrics.

        Returns:
            Whether the run must end because too many consecutive updates were skipped.
        """
        self.skipped = self.skipped + 1 if non_finite(metrics) else 0
        for name, value in metrics.items():
            if math.isfinite(value):
                self._history.setdefault(name, []).append(value)
        return self.skipped >= self._settings.skips

    def diverging(self) -> list[str]:
        """Report losses whose recent median is far above the overall one, each once."""
        messages = []
        for name, values in self._history.items():
            if name in self._reported or len(values) < WARMUP_ITERATIONS:
                continue
            if kind_of(name) == "gradient":
                continue
            recent, usual = np.median(values[-MEDIAN_WINDOW:]), np.median(values)
            if recent > self._settings.divergence * usual:
                self._reported.add(name)
                messages.append(f"{name} {recent:.3g} after {usual:.3g}")
        return messages


def no_adapter(names: Sequence[str], settings: Guard) -> str:
    """Return the message for runs with too many consecutive skipped updates.

    Args:
        names: names of the runs; the name of a single run may be empty.
        settings: guard settings of all runs.
    """
    return named(
        ", ".join(filter(None, names)),
        f"{settings.skips} consecutive updates had a non-finite loss or gradient; no adapter was "
        "written; the last good state is in the newest checkpoint. Reduce "
        "lower.learning_rate and upper.learning_rate, or set lower.clip and upper.clip; "
        f"{SKIPPED} lists the iterations; inspect one with --replay",
    )


def skipped_update(step: int, metrics: Sequence[str]) -> str:
    """Return the message for an iteration with non-finite metrics."""
    return (
        f"iteration {step}: {', '.join(metrics)} not finite; the update was skipped "
        f"({SKIPPED}); inspect it with --replay {step}"
    )
