"""Figures with 95 % intervals, from the scores of each picture."""

from collections.abc import Sequence

from erase.evaluation.statistics import wilson_interval
from erase.judges.protocol import Figure

# Half the width of a 95 % interval in standard deviations of a normal distribution.
NORMAL = 1.959964


def percentage(name: str, hits: Sequence[bool]) -> Figure:
    """The share of pictures, in percent, with its Wilson interval.

    Args:
        name: column.
        hits: one for each picture, at least one.
    """
    share = wilson_interval(sum(hits), len(hits))
    value, low, high = (100 * share[key] for key in ("share", "low", "high"))
    return Figure(name, value, "%", low, high, len(hits))


def picture_count(name: str, hits: Sequence[bool]) -> Figure:
    """The number of pictures, with the Wilson interval of their share.

    Args:
        name: column.
        hits: one for each picture, at least one.
    """
    share, of = wilson_interval(sum(hits), len(hits)), len(hits)
    return Figure(name, sum(hits), "pictures", of * share["low"], of * share["high"], of)


def total(name: str, counts: Sequence[int], unit: str) -> Figure:
    """The sum of counts, with an interval from how much they differ between pictures.

    Args:
        name: column.
        counts: one for each picture, at least one.
        unit: "detections" or "pictures".
    """
    found, of = sum(counts), len(counts)
    half = NORMAL * of**0.5 * _deviation(counts)
    return Figure(name, found, unit, max(found - half, 0.0), found + half, of)


def mean(name: str, values: Sequence[float]) -> Figure:
    """The mean, with its interval by Student's t; without one for a single picture.

    Args:
        name: column.
        values: one for each picture, at least one.
    """
    from scipy.stats import t

    of = len(values)
    middle = sum(values) / of
    if of == 1:
        return Figure(name, middle, "", None, None, 1)
    half = float(t.ppf(0.975, of - 1)) * _deviation(values) / of**0.5
    return Figure(name, middle, "", middle - half, middle + half, of)


def _deviation(values: Sequence[float]) -> float:
    """Standard deviation of a population that these are a sample of."""
    middle = sum(values) / len(values)
    return (sum((each - middle) ** 2 for each in values) / max(len(values) - 1, 1)) ** 0.5
