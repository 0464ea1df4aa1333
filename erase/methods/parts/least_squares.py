"""Least squares of `erase.compose.fusion`: sums over the concepts, and the solution.

Axis letters: L blocks, I inputs, O outputs, R rank.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from erase.methods.parts.closed_form import reduced

# ε relative to the mean of M's diagonal: makes M invertible and barely changes the solution.
RIDGE = 1e-6


def energy(
    gram: Float[np.ndarray, "L I I"], a: Float[np.ndarray, "L I R"], b: Float[np.ndarray, "L R O"]
) -> float:
    """Return E ‖h A B‖², summed over all blocks."""
    return float(np.sum((a.swapaxes(-1, -2) @ gram @ a @ b) * b))


@dataclass
class Moments:
    """Statistics of a target's inputs for the objective; sums over adapters, in double precision.

    Attributes:
        erased: Σ w_i G_i.
        wanted: Σ w_i G_i D_i.
        asked: Σ w_i E_i ‖h D_i‖².
        weight: Σ w_i.
        preserved: Σ G_p.
        batches: number of batches of preserved prompts.
    """

    erased: Float[np.ndarray, "L I I"]
    wanted: Float[np.ndarray, "L I O"]
    preserved: Float[np.ndarray, "L I I"]
    asked: float = 0.0
    weight: float = 0.0
    batches: int = 0

    @classmethod
    def zeros(cls, change: Mapping[str, np.ndarray], target: str) -> "Moments":
        """Return empty sums in a target's shapes."""
        blocks, inputs, _ = change[f"{target}/A"].shape
        square = (blocks, inputs, inputs)
        wanted = np.zeros((blocks, inputs, change[f"{target}/B"].shape[-1]))
        return cls(np.zeros(square), wanted, np.zeros(square))

    def add(
        self,
        gram: Float[np.ndarray, "L I I"],
        a: Float[np.ndarray, "L I R"],
        b: Float[np.ndarray, "L R O"],
        weight: float = 1.0,
    ) -> None:
        """Add an adapter: the Gram matrix on its prompts, its change A B, and its weight."""
        self.erased += weight * gram
        self.wanted += weight * ((gram @ a) @ b)
        self.asked += weight * energy(gram, a, b)
        self.weight += weight

    def preserve(self, gram: Float[np.ndarray, "L I I"]) -> None:
        """Add the Gram matrix on a batch of prompts to preserve."""
        self.preserved += gram
        self.batches += 1

    def solve(
        self, rank: int, preserve: float
    ) -> tuple[Float[np.ndarray, "L I R"], Float[np.ndarray, "L R O"]]:
        """Return A and B of the change of a given rank that minimises the objective."""
        solved = []
        for erased, preserved, wanted in zip(self.erased, self.preserved, self.wanted, strict=True):
            matrix = erased / self.weight + preserve * preserved / max(1, self.batches)
            matrix[np.diag_indices_from(matrix)] += RIDGE * np.trace(matrix) / len(matrix)
            solved.append(reduced(matrix, wanted / self.weight, rank))
        a, b = zip(*solved, strict=True)
        return np.stack(a), np.stack(b)

    def losses(
        self, a: Float[np.ndarray, "L I R"], b: Float[np.ndarray, "L R O"]
    ) -> dict[str, float]:
        """Measure how far a change A B is from the objective, relative to Σ w_i E_i ‖h D_i‖².

        Returns:
            `missing`: Σ w_i E_i ‖h (D - D_i)‖²; `spilled`: Σ w_i E_p ‖h D‖².
        """
        overlap = float(np.sum((a.swapaxes(-1, -2) @ self.wanted) * b))
        missing = energy(self.erased, a, b) - 2 * overlap + self.asked
        spilled = self.weight * energy(self.preserved, a, b) / max(1, self.batches)
        asked = self.asked or 1.0
        return {"missing": missing / asked, "spilled": spilled / asked}
