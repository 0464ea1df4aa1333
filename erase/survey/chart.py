"""The radar chart of the paper's Figure 5: a method's means on five axes."""

import io
from collections.abc import Mapping, Sequence
from typing import Any, cast

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from erase.report import plain_text

# Told apart by lines as well as by colours, in the order of the methods.
COLOURS = ("#0f766e", "#b42318", "#1d4ed8", "#8f5b00", "#7e22ce", "#475467")
DASHES = ("-", "--", "-.", ":")
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "radar",
    "font.family": "sans-serif",
    "font.size": 10,
}


def radar(
    values: Mapping[str, Sequence[float]],
    axes: Sequence[str],
    limits: tuple[float, float],
    title: str,
) -> Mapping[str, bytes]:
    """Draw the chart.

    Args:
        values: of each method, one for each axis.
        axes: their titles, with units.
        limits: lowest and highest value of all axes.
        title: of the chart.

    Returns:
        The chart as "svg" and "png".
    """
    figure = radar_figure(values, axes, limits, title)
    files = {}
    with mpl.rc_context(STYLE):
        for kind, metadata in (("svg", {"Date": None}), ("png", {"Software": None})):
            buffer = io.BytesIO()
            figure.savefig(buffer, format=kind, metadata=metadata, dpi=160)
            files[kind] = buffer.getvalue()
    return files


def radar_figure(
    values: Mapping[str, Sequence[float]],
    axes: Sequence[str],
    limits: tuple[float, float],
    title: str,
) -> Figure:
    """Draw the chart as a figure; see `radar`."""
    angles = np.linspace(0, 2 * np.pi, len(axes), endpoint=False)
    closed = [*angles, angles[0]]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8, 6), layout="constrained")
        # The layout counts no titles at the left of a polar plot.
        cast(Any, figure.get_layout_engine()).set(rect=(0.06, 0, 0.94, 1))
        plot: Any = figure.add_subplot(projection="polar")
        plot.set_theta_offset(np.pi / 2)
        plot.set_theta_direction(-1)
        plot.set_ylim(*limits)
        # A word a line, outside the circle; a unit stays with its word.
        units = [plain_text.label(axis).replace(" %", "\u00a0%") for axis in axes]
        titles = [axis.replace(" ", "\n") for axis in units]
        plot.set_xticks(angles, titles)
        plot.tick_params(axis="x", pad=20)
        for index, (method, points) in enumerate(values.items()):
            colour = COLOURS[index % len(COLOURS)]
            dash = DASHES[index % len(DASHES)]
            line = [*points, points[0]]
            plot.plot(
                closed, line, dash, color=colour, label=plain_text.label(method), linewidth=1.8
            )
            plot.fill(closed, line, color=colour, alpha=0.06)
        plot.set_title(plain_text.label(title), pad=18)
        figure.legend(loc="outside right upper", frameon=False)
    return figure
