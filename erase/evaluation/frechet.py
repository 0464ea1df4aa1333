"""How far two sets of pictures are apart, as a judge's features see them.

Axis letters: N pictures, F features, h w picture sides.
"""

import numpy as np
from jaxtyping import Float, UInt8
from scipy.linalg import eigh

from erase.evaluation.judge import Judge


def features(judge: Judge, pictures: UInt8[np.ndarray, "N h w 3"]) -> Float[np.ndarray, "N F"]:
    """The judge's last layer, the mean over the picture."""
    return np.asarray(judge(pictures).features, np.float64).mean(axis=(1, 2))


def distance(one: Float[np.ndarray, "N F"], other: Float[np.ndarray, "M F"]) -> float:
    """Fréchet's distance between normal distributions with both sets' means and covariances.

    ‖μ - μ'‖² + tr(Σ + Σ' - 2 (Σ Σ')^½), as in FID, with other features than Inception's.
    """
    means = one.mean(axis=0), other.mean(axis=0)
    first, second = (np.cov(each, rowvar=False) for each in (one, other))
    # The trace of (Σ Σ')^½ is that of (Σ^½ Σ' Σ^½)^½, which is symmetric.
    root = _root(first)
    shared = np.sqrt(np.maximum(eigh(root @ second @ root, eigvals_only=True), 0)).sum()
    apart = np.sum((means[0] - means[1]) ** 2) + np.trace(first) + np.trace(second) - 2 * shared
    return float(max(apart, 0.0))


def _root(matrix: Float[np.ndarray, "F F"]) -> Float[np.ndarray, "F F"]:
    """The symmetric root of a covariance."""
    values, vectors = eigh(matrix)
    return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
