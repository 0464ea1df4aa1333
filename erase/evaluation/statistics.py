"""Statistics: shares with intervals, means over concepts, and Fréchet distance of picture sets.

Axis letters: N M pictures, F features.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import cast

import numpy as np
from jaxtyping import Bool, Float

from erase.runtime.results import Cell, Cells, ComparedRow, Share, Side, Sides, Sums


def wilson_interval(found: int, of: int) -> Share:
    """Compute a share with its Wilson interval at 95 %."""
    from scipy.stats import binomtest

    interval = binomtest(found, of).proportion_ci(method="wilson")
    return {
        "found": found,
        "of": of,
        "share": found / of,
        "low": float(interval.low),
        "high": float(interval.high),
    }


def count_cells(cells: Sequence[str], found: Mapping[str, Bool[np.ndarray, "N"]]) -> Cells:
    """Compute shares by cell and side, cells in the order of their first picture.

    Args:
        cells: cell of each picture.
        found: whether the judge finds the sought concept in each picture, by side.
    """
    counted = {}
    for cell in dict.fromkeys(cells):
        rows = [i for i, cell_of_picture in enumerate(cells) if cell_of_picture == cell]
        counted[cell] = {
            side: wilson_interval(int(hits[rows].sum()), len(rows)) for side, hits in found.items()
        }
    return counted


CELLS: tuple[Cell, ...] = ("Acc_e", "Acc_g", "Acc_ir")


# Number of bootstrap samples.
BOOTSTRAP_SAMPLES = 2000


SIDES: tuple[Side, ...] = ("before", "after")


def harmonic_mean(cells: Mapping[str, Sides], side: str) -> float:
    """Compute H: the harmonic mean of 1 - Acc_e, Acc_ir and 1 - Acc_g, in [0, 1]; more is better.

    Args:
        cells: shares by side of Acc_e, Acc_ir and, if it was measured, Acc_g; see `has_mean`.
        side: "before" or "after".
    """
    from scipy.stats import hmean

    shares = {cell: cells[cell][side]["share"] for cell in CELLS if cell in cells}
    others = shares.pop("Acc_ir")
    return float(hmean([others, *(1 - share for share in shares.values())]))


def has_mean(cells: Collection[str]) -> bool:
    """Whether the cells that H needs are present: Acc_e and Acc_ir."""
    return {"Acc_e", "Acc_ir"} <= set(cells)


def pooled(cells: Iterable[Cells]) -> Sums:
    """Pool the cells of several concepts, each with the same number of pictures.

    Args:
        cells: shares by cell and side, of each concept; a concept may lack a cell.

    Returns:
        Cells of the same form, and `H` by side if the cells that it needs are there; see
        `has_mean`.
    """
    cells = list(cells)
    sums: Cells = {}
    for cell in dict.fromkeys(cell for each in cells for cell in each):
        counted = [each[cell] for each in cells if cell in each]
        sums[cell] = {
            side: wilson_interval(
                sum(each[side]["found"] for each in counted),
                sum(each[side]["of"] for each in counted),
            )
            for side in counted[0]
        }
    # `Sums` does not declare families of attacks as keys.
    result = cast(Sums, dict(sums))
    if has_mean(sums):
        result["H"] = {side: harmonic_mean(sums, side) for side in SIDES}
    return result


def cells_of(sums: Sums) -> Cells:
    """Return the cells or families of attacks in sums, in their order."""
    return cast(Cells, {key: value for key, value in sums.items() if key not in ("H", "concepts")})


def over_concepts(rows: Sequence[ComparedRow]) -> dict[str, list[float]]:
    """Compute bootstrap intervals over concepts for the shares after erasing, and H.

    They estimate the variation with other concepts of the same kind: the 2.5th and 97.5th
    percentiles over bootstrap samples of the concepts, each with all of its runs. Pictures of one
    concept are similar, so an interval over pictures would be too small.

    Args:
        rows: each run's concept, cells and attacks.

    Returns:
        Both ends for each measured cell, `H` and `attacks`; they are equal for a single concept.
    """
    every = list(_by_concept(rows).values())
    total = np.sum(every, axis=0)
    counted = total[:, 1] > 0

    def shares(counts: np.ndarray) -> np.ndarray:
        # If a sample has no concept with measured synonyms, use all concepts instead.
        counts = np.where(counts[..., 1:] > 0, counts, total)
        *cells, attacked = _shares(counts)[counted]
        return np.stack([*cells, _good(counts), attacked])

    names = [name for name, has in zip((*CELLS, "attacks"), counted, strict=True) if has]
    names.insert(-1, "H")
    return dict(zip(names, _ends(every, shares).tolist(), strict=True))


def ahead(rows: Sequence[ComparedRow], others: Sequence[ComparedRow]) -> tuple[float, float, float]:
    """Compute how much greater H is than that of another method on the same concepts.

    Concepts differ more than methods do, so this is more informative than two intervals of H.

    Args:
        rows: each run's concept, cells and attacks.
        others: rows of the other method, for the same concepts.

    Returns:
        The difference, and the ends of its interval with the same bootstrap as `over_concepts`.
    """
    one, other = _by_concept(rows), _by_concept(others)
    both = [np.stack([one[concept], other[concept]]) for concept in one]

    def gained(counts: np.ndarray) -> np.ndarray:
        return np.asarray(_good(counts[..., 0, :, :]) - _good(counts[..., 1, :, :]))

    low, high = _ends(both, gained).tolist()
    return float(gained(np.sum(both, axis=0))), low, high


def frechet_distance(one: Float[np.ndarray, "N F"], other: Float[np.ndarray, "M F"]) -> float:
    """Compute the Fréchet distance between normal distributions fitted to two sets.

    ‖μ - μ'‖² + tr(Σ + Σ' - 2 (Σ Σ')^½), as in FID, but with other features than Inception's.
    """
    from scipy.linalg import eigh

    means = one.mean(axis=0), other.mean(axis=0)
    first, second = (np.cov(each, rowvar=False) for each in (one, other))
    # (Σ Σ')^½ has the same trace as (Σ^½ Σ' Σ^½)^½, which is symmetric.
    root = _square_root(first)
    shared = np.sqrt(np.maximum(eigh(root @ second @ root, eigvals_only=True), 0)).sum()
    apart = np.sum((means[0] - means[1]) ** 2) + np.trace(first) + np.trace(second) - 2 * shared
    return float(max(apart, 0.0))


def _by_concept(rows: Sequence[ComparedRow]) -> dict[str, np.ndarray]:
    """Sum hits and pictures [4, 2] of the cells and attacks over each concept's runs."""
    sums: dict[str, np.ndarray] = {}
    for row in rows:
        values = [row["cells"].get(cell, {}).get("after") for cell in CELLS]
        counts = np.array(
            [(v["found"], v["of"]) if v else (0, 0) for v in (*values, row["attacks"])]
        )
        sums[row["concept"]] = sums.get(row["concept"], 0) + counts
    return sums


def _shares(counts: np.ndarray) -> np.ndarray:
    """Shares [4, ...] of counts [..., 4, 2]; NaN where nothing was counted."""
    found, of = np.moveaxis(counts, -1, 0)
    return np.moveaxis(np.where(of > 0, found / np.maximum(of, 1), np.nan), -1, 0)


def _good(counts: np.ndarray) -> np.ndarray:
    """H [...] of counts [..., 4, 2]."""
    from scipy.stats import hmean

    erased, other_words, others, _ = _shares(counts)
    good = 1 - erased, others
    every = hmean([*good, 1 - np.nan_to_num(other_words)], axis=0)
    # If no synonym was counted, H is the mean of the other two.
    return np.where(np.isnan(other_words), hmean(good, axis=0), every)


def _ends(every: Sequence[np.ndarray], of: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Bootstrap interval [..., 2] of a function of the concepts' summed counts [..., 4, 2]."""
    from scipy.stats import bootstrap

    # A single concept cannot be resampled; duplicated, it gives an interval of width 0.
    each = np.stack([*every] * (1 if len(every) > 1 else 2))

    def sampled(rows: np.ndarray, axis: int) -> np.ndarray:
        # Bootstrap samples are on the last axis but one, concepts on the last.
        del axis
        return of(each[rows].sum(axis=rows.ndim - 1))

    interval = bootstrap(
        (np.arange(len(each)),), sampled, n_resamples=BOOTSTRAP_SAMPLES, method="percentile", rng=0
    ).confidence_interval
    return np.stack([interval.low, interval.high], axis=-1)


def _square_root(matrix: Float[np.ndarray, "F F"]) -> Float[np.ndarray, "F F"]:
    """Return the symmetric square root of a covariance."""
    from scipy.linalg import eigh

    values, vectors = eigh(matrix)
    return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
