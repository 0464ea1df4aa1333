"""Shares as texts: the same rounding, to a tenth of a percent, wherever one is shown."""

from collections.abc import Mapping

Share = Mapping[str, float] | float


def number(value: Share) -> str:
    """A share in percent without the sign, for tables whose head has it: "12.5".

    Args:
        value: from 0 to 1; or a count with its share, as `erase.evaluation.statistics.share` gives
            it.
    """
    return f"{100 * (value['share'] if isinstance(value, Mapping) else value):.1f}"


def percent(value: Share) -> str:
    """A share in percent: "12.5 %"."""
    return f"{number(value)} %"


def interval(value: Mapping[str, float]) -> str:
    """The interval of a count with its share: "8.3 to 17.0 %"."""
    return f"{number(value['low'])} to {percent(value['high'])}"


def points(difference: float) -> str:
    """How much one share is greater than another, in points of percent: "+1.5"."""
    shown = f"{100 * difference:+.1f}"
    return "+0.0" if shown == "-0.0" else shown
