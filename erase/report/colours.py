"""Colours of a report's numbers: from red, the worst, to green, the best."""

from matplotlib.colors import LinearSegmentedColormap, to_hex

# Cells in which the judge should find nothing.
ERASED = ("Acc_e", "Acc_g")


# Dark enough on a light page for small text, and light enough on a dark one.
ON_LIGHT = LinearSegmentedColormap.from_list("on light", ["#b42318", "#8f5b00", "#0f766e"])
ON_DARK = LinearSegmentedColormap.from_list("on dark", ["#ff9c91", "#f0b354", "#4fd1bd"])


def goodness(cell: str, share: float) -> float:
    """How near a cell's share is to the best one, from 0 to 1."""
    return 1 - share if cell in ERASED else share


def colour(good: float, dark: bool = False) -> str:
    """The colour of a number.

    Args:
        good: how near it is to the best, from 0 to 1; beyond them it counts as they do.
        dark: whether the page is dark.
    """
    return to_hex((ON_DARK if dark else ON_LIGHT)(float(good)))


def tones(good: float) -> str:
    """The colours of a number as CSS variables, of which the page takes the one for its scheme."""
    return f"--light:{colour(good)};--dark:{colour(good, dark=True)}"
