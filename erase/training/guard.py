"""Detect non-finite updates and diverging losses.

The updates themselves leave out what is not finite (`erase.methods.parts.step`); here that is
noticed, counted and written down so that it can be done again (`erase.training.replay`).
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from erase.config.schema import Guard
from erase.runtime.run_folder import SKIPPED, kind_of
from erase.training.metrics import named

# Divergence is looked for once a loss has so many values, by the median of the last ones.
WARMUP_ITERATIONS, MEDIAN_WINDOW = 50, 20


def non_finite(metrics: Mapping[str, float]) -> list[str]:
    """Names of the metrics that are not finite."""
    return [name for name, value in metrics.items() if not math.isfinite(value)]


class Tally:
    """What is known of the metrics of one run.

    Attributes:
        skipped: iterations in a row in which an update was left out.
    """

    def __init__(self, settings: Guard, skipped: int = 0) -> None:
        self.skipped = skipped
        self._settings = settings
        self._history: dict[str, list[float]] = {}
        self._reported: set[str] = set()

    def count(self, metrics: Mapping[str, float]) -> bool:
        """Takes an iteration's metrics.

        Returns:
            Whether the run is lost: too many updates in a row were left out.
        """
        self.skipped = self.skipped + 1 if non_finite(metrics) else 0
        for name, value in metrics.items():
            if math.isfinite(value):
                self._history.setdefault(name, []).append(value)
        return self.skipped >= self._settings.skips

    def diverging(self) -> list[str]:
        """Losses whose recent values are far above all, each reported once, with both medians."""
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
    """The message for runs that lost too many updates in a row.

    Args:
        names: of the runs; empty for one that has none.
        settings: of all.
    """
    return named(
        ", ".join(filter(None, names)),
        f"{settings.skips} consecutive updates had a non-finite loss or gradient; no adapter was "
        "written; the last good state is in the newest checkpoint. Reduce "
        "lower.learning_rate and upper.learning_rate, or set lower.clip and upper.clip; "
        f"{SKIPPED} names the iterations, which --replay shows",
    )


def skipped_update(step: int, metrics: Sequence[str]) -> str:
    """The message for an iteration some of whose metrics are not finite."""
    return (
        f"iteration {step}: {', '.join(metrics)} not finite; the update was left out "
        f"({SKIPPED}); --replay {step} shows why"
    )
