"""Shares with their intervals, means over concepts, and the distance between sets of pictures.

Axis letters: N M pictures, F features.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import cast

import numpy as np
from jaxtyping import Bool, Float

from erase.runtime.results import Cell, Cells, ComparedRow, Share, Side, Sides, Sums


def wilson_interval(found: int, of: int) -> Share:
    """A share with its Wilson interval at 95 %."""
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
    """Shares by cell and side, cells in the order of their first picture.

    Args:
        cells: what each picture counts for.
        found: whether the judge finds what it looks for in each picture, by side.
    """
    counted = {}
    for cell in dict.fromkeys(cells):
        rows = [i for i, cell_of_picture in enumerate(cells) if cell_of_picture == cell]
        counted[cell] = {
            side: wilson_interval(int(hits[rows].sum()), len(rows)) for side, hits in found.items()
        }
    return counted


CELLS: tuple[Cell, ...] = ("Acc_e", "Acc_g", "Acc_ir")


# Of the bootstrap.
BOOTSTRAP_SAMPLES = 2000


SIDES: tuple[Side, ...] = ("before", "after")


def harmonic_mean(cells: Mapping[str, Sides], side: str) -> float:
    """H: the harmonic mean of 1 - Acc_e, Acc_ir and 1 - Acc_g, in [0, 1]; greater is better.

    Args:
        cells: shares by side of Acc_e, Acc_ir and, where it was counted, Acc_g; see `has_mean`.
        side: "before" or "after".
    """
    from scipy.stats import hmean

    shares = {cell: cells[cell][side]["share"] for cell in CELLS if cell in cells}
    others = shares.pop("Acc_ir")
    return float(hmean([others, *(1 - share for share in shares.values())]))


def has_mean(cells: Collection[str]) -> bool:
    """Whether there is enough for H: what is erased and what is kept."""
    return {"Acc_e", "Acc_ir"} <= set(cells)


def pooled(cells: Iterable[Cells]) -> Sums:
    """Cells of several concepts as one: all pictures together, each concept having as many.

    Args:
        cells: of each concept, shares by cell and side; a concept may lack a cell.

    Returns:
        Cells of the same form, and `H` by side where an evaluation's are there; see `has_mean`.
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
    # Families of attacks are no keys that `Sums` declares.
    result = cast(Sums, dict(sums))
    if has_mean(sums):
        result["H"] = {side: harmonic_mean(sums, side) for side in SIDES}
    return result


def cells_of(sums: Sums) -> Cells:
    """The cells or families of attacks among sums, in their order."""
    return cast(Cells, {key: value for key, value in sums.items() if key not in ("H", "concepts")})


def over_concepts(rows: Sequence[ComparedRow]) -> dict[str, list[float]]:
    """How far shares after erasing, and H, would move with other concepts of the same sort.

    The 2.5th and 97.5th percentiles over bootstrap samples of the concepts, each with all of its
    runs. Pictures of one concept are much alike, so an interval over pictures would be too small.

    Args:
        rows: each run's concept, cells and attacks.

    Returns:
        Two numbers for each cell that was counted, `H` and `attacks`; the same number twice for a
        single concept.
    """
    every = list(_by_concept(rows).values())
    total = np.sum(every, axis=0)
    counted = total[:, 1] > 0

    def shares(counts: np.ndarray) -> np.ndarray:
        # A sample may have no concept whose synonyms were counted; all concepts then stand in.
        counts = np.where(counts[..., 1:] > 0, counts, total)
        *cells, attacked = _shares(counts)[counted]
        return np.stack([*cells, _good(counts), attacked])

    names = [name for name, has in zip((*CELLS, "attacks"), counted, strict=True) if has]
    names.insert(-1, "H")
    return dict(zip(names, _ends(every, shares).tolist(), strict=True))


def ahead(rows: Sequence[ComparedRow], others: Sequence[ComparedRow]) -> tuple[float, float, float]:
    """How much greater H is than with another method, on the same concepts.

    Concepts differ more than methods do, so this says more than two intervals of H.

    Args:
        rows: each run's concept, cells and attacks.
        others: the other method's, of the same concepts.

    Returns:
        The difference, and its ends by the same bootstrap as `over_concepts`.
    """
    one, other = _by_concept(rows), _by_concept(others)
    both = [np.stack([one[concept], other[concept]]) for concept in one]

    def gained(counts: np.ndarray) -> np.ndarray:
        return np.asarray(_good(counts[..., 0, :, :]) - _good(counts[..., 1, :, :]))

    low, high = _ends(both, gained).tolist()
    return float(gained(np.sum(both, axis=0))), low, high


def frechet_distance(one: Float[np.ndarray, "N F"], other: Float[np.ndarray, "M F"]) -> float:
    """Fréchet's distance between normal distributions with both sets' means and covariances.

    ‖μ - μ'‖² + tr(Σ + Σ' - 2 (Σ Σ')^½), as in FID, with other features than Inception's.
    """
    from scipy.linalg import eigh

    means = one.mean(axis=0), other.mean(axis=0)
    first, second = (np.cov(each, rowvar=False) for each in (one, other))
    # The trace of (Σ Σ')^½ is that of (Σ^½ Σ' Σ^½)^½, which is symmetric.
    root = _square_root(first)
    shared = np.sqrt(np.maximum(eigh(root @ second @ root, eigvals_only=True), 0)).sum()
    apart = np.sum((means[0] - means[1]) ** 2) + np.trace(first) + np.trace(second) - 2 * shared
    return float(max(apart, 0.0))


def _by_concept(rows: Sequence[ComparedRow]) -> dict[str, np.ndarray]:
    """Found and looked for [4, 2] in the cells and attacks of each concept's runs together."""
    sums: dict[str, np.ndarray] = {}
    for row in rows:
        values = [row["cells"].get(cell, {}).get("after") for cell in CELLS]
        counts = np.array(
            [(v["found"], v["of"]) if v else (0, 0) for v in (*values, row["attacks"])]
        )
        sums[row["concept"]] = sums.get(row["concept"], 0) + counts
    return sums


def _shares(counts: np.ndarray) -> np.ndarray:
    """Shares [4, ...] of counts [..., 4, 2]; no number where nothing was counted."""
    found, of = np.moveaxis(counts, -1, 0)
    return np.moveaxis(np.where(of > 0, found / np.maximum(of, 1), np.nan), -1, 0)


def _good(counts: np.ndarray) -> np.ndarray:
    """H [...] of counts [..., 4, 2]."""
    from scipy.stats import hmean

    erased, other_words, others, _ = _shares(counts)
    good = 1 - erased, others
    every = hmean([*good, 1 - np.nan_to_num(other_words)], axis=0)
    # Where no synonym was counted, the mean is that of the other two.
    return np.where(np.isnan(other_words), hmean(good, axis=0), every)


def _ends(every: Sequence[np.ndarray], of: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """The interval [..., 2] of a function of concepts' counts [..., 4, 2] summed over samples."""
    from scipy.stats import bootstrap

    # One concept cannot be sampled; twice the same gives no spread.
    each = np.stack([*every] * (1 if len(every) > 1 else 2))

    def sampled(rows: np.ndarray, axis: int) -> np.ndarray:
        # Samples stand along the axis before the last, concepts along the last.
        del axis
        return of(each[rows].sum(axis=rows.ndim - 1))

    interval = bootstrap(
        (np.arange(len(each)),), sampled, n_resamples=BOOTSTRAP_SAMPLES, method="percentile", rng=0
    ).confidence_interval
    return np.stack([interval.low, interval.high], axis=-1)


def _square_root(matrix: Float[np.ndarray, "F F"]) -> Float[np.ndarray, "F F"]:
    """The symmetric root of a covariance."""
    from scipy.linalg import eigh

    values, vectors = eigh(matrix)
    return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
