"""Closed-form changes of dense layers by least squares, without training.

A layer maps h to h W, W [I, O]; its bias is not involved. All changes are returned as factors A B.
Axis letters: I inputs, O outputs, R rank, N erased vectors, M preserved vectors.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from flux_jax.errors import InputError

# Largest accepted ratio of a system's largest to its smallest eigenvalue.
CONDITION = 1e12
# Prefixes of layers that have weights in every block.
BLOCKS = ("dual_blocks", "single_blocks")


@dataclass(frozen=True)
class Ridge:
    """Ridge penalty on a change.

    Attributes:
        weight: λ, in units of `unit`.
        unit: factor by which `weight` is multiplied.
        name: name of the field in the configuration, for messages.
    """

    weight: float
    unit: float = 1.0
    name: str = "ridge"


def edit(
    kernel: Float[np.ndarray, "I O"],
    erased: Float[np.ndarray, "N I"],
    guides: Float[np.ndarray, "N I"],
    kept: Float[np.ndarray, "M I"],
    ridge: Ridge,
    *,
    preserve: float = 1.0,
    rank: int | None = None,
) -> tuple[Float[np.ndarray, "I R"], Float[np.ndarray, "R O"]]:
    """Compute the change D such that W + D maps erased vectors to where W maps their guides.

    D minimises Σ ‖c (W + D) - g W‖² + p Σ ‖k D‖² + λ ‖D‖² over erased c with their guides g and
    preserved k: D = (λ + XᵀX)⁻¹ Σ cᵀ (g - c) W, where X has the rows c and √p k. With the singular
    value decomposition X = U S V, (λ + XᵀX)⁻¹ Xᵀ = Vᵀ S (λ + S²)⁻¹ Uᵀ, so that no matrix as wide
    as the layer is inverted. The best change of a given rank comes from the largest singular values
    of (λ + S²)^½ V D (reduced-rank regression).

    Args:
        kernel: W.
        erased: c.
        guides: g, one for each c.
        kept: k.
        ridge: λ.
        preserve: p.
        rank: rank of the change, by default the number of erased vectors; unused rank is zeros.

    Raises:
        InputError: the system is singular in float64.
    """
    # Rows of zeros change nothing, and give as many singular values as the rank needs.
    zeros = np.zeros((max(0, (rank or 0) - len(erased) - len(kept)), len(kernel)))
    rows = np.concatenate([erased, preserve**0.5 * kept, zeros])
    u, s, v = np.linalg.svd(rows, full_matrices=False)
    squares = s**2 + ridge.weight * ridge.unit
    least = ridge.weight * ridge.unit if len(s) < len(kernel) else squares[-1]
    _check(least, squares[0], ridge)
    keys, moved = u[: len(erased)].T, (guides - erased) @ kernel
    if rank is None:
        return v.T @ ((s / squares)[:, None] * keys), moved
    inner = (s / squares**0.5)[:, None] * (keys @ moved)
    from scipy.linalg import eigh

    _, left = eigh(inner @ inner.T, subset_by_index=[len(s) - rank, len(s) - 1])
    return v.T @ (left / squares[:, None] ** 0.5), left.T @ inner


def leaves(
    target: str, factors: Sequence[tuple[Float[np.ndarray, "I R"], Float[np.ndarray, "R O"]]]
) -> dict[str, Float[np.ndarray, "..."]]:
    """Return a layer's factors in every block as an adapter's leaves by their paths.

    Args:
        target: the layer's path; a layer outside the blocks has a single pair of factors.
        factors: A and B, block by block.
    """
    halves = (np.stack(each).astype(np.float32) for each in zip(*factors, strict=True))
    inside = target.startswith(BLOCKS)
    return {
        f"{target}/{name}": half if inside else half[0]
        for name, half in zip("AB", halves, strict=True)
    }


def _check(least: float, most: float, ridge: Ridge) -> None:
    """Refuse a matrix whose eigenvalues do not allow inversion in float64."""
    if not least > most / CONDITION:
        raise InputError(
            f"{ridge.name} is too small: the closed form's system is singular (eigenvalues "
            f"{least:.3g} to {most:.3g}); raise it to {most * 1e-9 / ridge.unit:.1g} or more, or "
            "preserve more prompts"
        )


def reduced(
    matrix: Float[np.ndarray, "I I"], wanted: Float[np.ndarray, "I O"], rank: int
) -> tuple[Float[np.ndarray, "I R"], Float[np.ndarray, "R O"]]:
    """Compute the D of a rank that minimises tr(Dᵀ M D) - 2 tr(Dᵀ V) (reduced-rank regression).

    Without the rank, that is D = M⁻¹ V; the best D of a given rank comes from the singular vectors
    of C⁻¹ V, where C Cᵀ = M.

    Args:
        matrix: M, positive definite.
        wanted: V.
        rank: R.
    """
    root = np.linalg.cholesky(matrix)
    from scipy.linalg import eigh, solve_triangular

    inner = solve_triangular(root, wanted, lower=True)
    # Only the right singular vectors, and only as many as the rank: seconds instead of minutes.
    last = inner.shape[1] - 1
    squares, v = eigh(inner.T @ inner, subset_by_index=[last - rank + 1, last])
    # Unused rank is almost zero in both factors.
    half = np.maximum(squares, max(squares[-1] * 1e-24, np.finfo(np.float64).tiny)) ** 0.25
    return solve_triangular(root.T, inner @ v / half), half[:, None] * v.T
