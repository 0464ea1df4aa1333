"""What is done where numbers of a run leave their range, or losses grow out of proportion.

The updates themselves leave out what is not finite (`erase.methods.parts.step`); here that is
noticed, counted and written down so that it can be done again (`erase.training.replay`).
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from erase.config.schema import Guard

# Lines of iterations that were left out, in a run's folder.
FILE = "skipped.jsonl"
# Values of a loss that are compared with all of them, and how many there have to be.
RECENT, ENOUGH = 20, 50


def lost(values: Mapping[str, float]) -> list[str]:
    """Names of the numbers that are not finite."""
    return [name for name, value in values.items() if not math.isfinite(value)]


class Tally:
    """What is known of the numbers of one run.

    Attributes:
        skipped: iterations in a row in which an update was left out.
    """

    def __init__(self, settings: Guard, skipped: int = 0) -> None:
        self.skipped = skipped
        self._settings = settings
        self._history: dict[str, list[float]] = {}
        self._told: set[str] = set()

    def count(self, values: Mapping[str, float]) -> bool:
        """Takes an iteration's numbers.

        Returns:
            Whether the run is lost: too many updates in a row were left out.
        """
        self.skipped = self.skipped + 1 if lost(values) else 0
        for name, value in values.items():
            if math.isfinite(value):
                self._history.setdefault(name, []).append(value)
        return self.skipped >= self._settings.skips

    def diverging(self) -> list[str]:
        """Losses whose recent values are far above all, each told once, with both medians."""
        told = []
        for name, values in self._history.items():
            if name in self._told or len(values) < ENOUGH or name.endswith("gradient"):
                continue
            recent, usual = np.median(values[-RECENT:]), np.median(values)
            if recent > self._settings.divergence * usual:
                self._told.add(name)
                told.append(f"{name} {recent:.3g} after {usual:.3g}")
        return told


def given_up(names: Sequence[str], settings: Guard) -> str:
    """What is said of runs that lost too many updates in a row.

    Args:
        names: of the runs; empty for one that has none.
        settings: of all.
    """
    named = ", ".join(filter(None, names))
    return (
        f"{named and f'{named}: '}{settings.skips} updates in a row left the range of numbers, so "
        "there is no adapter; the last good state is in the newest checkpoint. Reduce "
        "lower.learning_rate and upper.learning_rate, or set lower.clip and upper.clip; "
        f"{FILE} names the iterations, which --replay shows"
    )


def explained(step: int, names: Sequence[str]) -> str:
    """What is said of an iteration whose numbers are lost."""
    return (
        f"iteration {step}: {', '.join(names)} left the range of numbers, and the update was left "
        f"out ({FILE}); --replay {step} shows why"
    )
