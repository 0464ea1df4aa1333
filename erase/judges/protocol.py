"""What a judge of pictures is: it scores each picture, and counts over all of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8

# One picture's scores by name, as they are written to JSON.
Scores = Mapping[str, float]


@dataclass(frozen=True)
class Figure:
    """One number of a table.

    Attributes:
        name: column, such as "Female" or "CLIP score".
        value: the number, in `unit`.
        unit: "pictures", "detections", "%" or "" for a plain number.
        low, high: 95 % interval in the same unit; None where there is none.
        pictures: number of pictures that it was computed from.
    """

    name: str
    value: float
    unit: str
    low: float | None
    high: float | None
    pictures: int


@runtime_checkable
class PictureJudge(Protocol):
    """Protocol of judges that need no concept: what they find is in the picture or its prompt."""

    @property
    def description(self) -> Mapping[str, str | float]:
        """What a figure depends on: package and version, model file, threshold."""
        ...

    def scores(
        self, pictures: UInt8[np.ndarray, "B h w 3"], prompts: Sequence[str]
    ) -> list[Scores]:
        """Return the scores of each picture, in order."""
        ...

    def figures(self, scores: Sequence[Scores]) -> list[Figure]:
        """Return the columns of the table, over the scores of all pictures."""
        ...
