"""The least squares of `erase.compose.fusion`: what is summed up over concepts, and its solution.

Axis letters: L blocks, I inputs, O outputs, R rank.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from erase.methods.parts.closed_form import reduced

# ε in means of M's diagonal: what makes M safe to invert, and moves nothing else.
RIDGE = 1e-6


def energy(
    gram: Float[np.ndarray, "L I I"], a: Float[np.ndarray, "L I R"], b: Float[np.ndarray, "L R O"]
) -> float:
    """E ‖h A B‖², over all blocks."""
    return float(np.sum((a.swapaxes(-1, -2) @ gram @ a @ b) * b))


@dataclass
class Moments:
    """What the objective needs of a target's inputs; sums over adapters, in double precision.

    Attributes:
        erased: Σ w_i G_i.
        wanted: Σ w_i G_i D_i.
        asked: Σ w_i E_i ‖h D_i‖².
        weight: Σ w_i.
        preserved: Σ G_p.
        batches: of preserved prompts.
    """

    erased: Float[np.ndarray, "L I I"]
    wanted: Float[np.ndarray, "L I O"]
    preserved: Float[np.ndarray, "L I I"]
    asked: float = 0.0
    weight: float = 0.0
    batches: int = 0

    @classmethod
    def zeros(cls, change: Mapping[str, np.ndarray], target: str) -> "Moments":
        """Nothing seen yet, in a target's shapes."""
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
        """An adapter's inputs on its own prompts, its change A B, and what it counts."""
        self.erased += weight * gram
        self.wanted += weight * ((gram @ a) @ b)
        self.asked += weight * energy(gram, a, b)
        self.weight += weight

    def preserve(self, gram: Float[np.ndarray, "L I I"]) -> None:
        """Inputs on prompts to preserve."""
        self.preserved += gram
        self.batches += 1

    def solve(
        self, rank: int, preserve: float
    ) -> tuple[Float[np.ndarray, "L I R"], Float[np.ndarray, "L R O"]]:
        """The objective's minimum among changes of a rank, as its A and B."""
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
        """How far a change A B is from what was wanted, in shares of Σ w_i E_i ‖h D_i‖².

        Returns:
            `missing`: Σ w_i E_i ‖h (D - D_i)‖²; `spilled`: Σ w_i E_p ‖h D‖².
        """
        overlap = float(np.sum((a.swapaxes(-1, -2) @ self.wanted) * b))
        missing = energy(self.erased, a, b) - 2 * overlap + self.asked
        spilled = self.weight * energy(self.preserved, a, b) / max(1, self.batches)
        asked = self.asked or 1.0
        return {"missing": missing / asked, "spilled": spilled / asked}
