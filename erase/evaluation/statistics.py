"""Shares with their intervals, and means over concepts."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np


def share(found: int, of: int) -> dict[str, float]:
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


CELLS = ("Acc_e", "Acc_g", "Acc_ir")


# Of the bootstrap.
SAMPLES = 2000


SIDES = ("before", "after")


def harmonic_mean(cells: Mapping[str, Any], side: str) -> float:
    """H: the harmonic mean of 1 - Acc_e, Acc_ir and 1 - Acc_g, in [0, 1]; greater is better.

    Args:
        cells: shares by side of Acc_e, Acc_ir and, where it was counted, Acc_g; see `has_mean`.
        side: "before" or "after".
    """
    from scipy.stats import hmean

    shares = {cell: cells[cell][side]["share"] for cell in CELLS if cell in cells}
    kept = shares.pop("Acc_ir")
    return float(hmean([kept, *(1 - share for share in shares.values())]))


def has_mean(cells: Mapping[str, Any]) -> bool:
    """Whether there is enough for H: what is erased and what is kept."""
    return {"Acc_e", "Acc_ir"} <= set(cells)


def pooled(cells: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Cells of several concepts as one: all pictures together, each concept having as many.

    Args:
        cells: of each concept, shares by cell and side; a concept may lack a cell.

    Returns:
        Cells of the same form, and `H` by side where an evaluation's are there; see `has_mean`.
    """
    cells = list(cells)
    sums: dict[str, Any] = {}
    for cell in dict.fromkeys(cell for each in cells for cell in each):
        having = [each[cell] for each in cells if cell in each]
        sums[cell] = {
            side: share(
                sum(each[side]["found"] for each in having),
                sum(each[side]["of"] for each in having),
            )
            for side in having[0]
        }
    if has_mean(sums):
        sums["H"] = {side: harmonic_mean(sums, side) for side in SIDES}
    return sums


def over_concepts(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
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

    def shares(drawn: np.ndarray) -> np.ndarray:
        # A sample may have no concept whose synonyms were counted; all concepts then stand in.
        drawn = np.where(drawn[..., 1:] > 0, drawn, total)
        *cells, attacked = _shares(drawn)[counted]
        return np.stack([*cells, _good(drawn), attacked])

    names = [name for name, has in zip((*CELLS, "attacks"), counted, strict=True) if has]
    names.insert(-1, "H")
    return dict(zip(names, _ends(every, shares).tolist(), strict=True))


def ahead(
    rows: Sequence[Mapping[str, Any]], others: Sequence[Mapping[str, Any]]
) -> tuple[float, float, float]:
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

    def gained(drawn: np.ndarray) -> np.ndarray:
        return np.asarray(_good(drawn[..., 0, :, :]) - _good(drawn[..., 1, :, :]))

    low, high = _ends(both, gained).tolist()
    return float(gained(np.sum(both, axis=0))), low, high


def _by_concept(rows: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
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

    erased, other_words, kept, _ = _shares(counts)
    good = 1 - erased, kept
    every = hmean([*good, 1 - np.nan_to_num(other_words)], axis=0)
    # Where no synonym was counted, the mean is that of the other two.
    return np.where(np.isnan(other_words), hmean(good, axis=0), every)


def _ends(every: Sequence[np.ndarray], of: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """The interval [..., 2] of a function of concepts' counts [..., 4, 2] summed over samples."""
    from scipy.stats import bootstrap

    # One concept cannot be sampled; twice the same gives no spread.
    each = np.stack([*every] * (1 if len(every) > 1 else 2))

    def sampled(drawn: np.ndarray, axis: int) -> np.ndarray:
        # Samples stand along the axis before the last, concepts along the last.
        del axis
        return of(each[drawn].sum(axis=drawn.ndim - 1))

    interval = bootstrap(
        (np.arange(len(each)),), sampled, n_resamples=SAMPLES, method="percentile", rng=0
    ).confidence_interval
    return np.stack([interval.low, interval.high], axis=-1)
