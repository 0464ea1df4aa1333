"""Charts of a run's losses and gradient norms, as SVG elements in the report's colours.

Axis letters: K iterations.
"""

import html
import io
import re
from pathlib import Path

import matplotlib as mpl
import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from erase.report import plain_text
from erase.report.plain_text import one_line
from erase.runtime import run_folder

# Colours that matplotlib writes, and the page's variables in their place: dark and light differ.
INK, SOFT, GRID, RAW, MEAN = "#010101", "#020202", "#030303", "#040404", "#050505"
VARIABLES = {INK: "ink", SOFT: "soft", GRID: "line", RAW: "raw", MEAN: "mean"}


# In inches; at 72 to the inch the lengths of the chart's own coordinates.
SIZE = (3.5, 2.5)


AXES = {"loss": "loss (no unit)", "gradient": "gradient norm (no unit)"}


def loss_charts(path: Path) -> list[str]:
    """A line chart of every metric in a `metrics.jsonl`, each an SVG element.

    Raises:
        InputError: a line is damaged.
    """
    series: dict[str, list[tuple[float, float]]] = {}
    for number, record in enumerate(run_folder.read_records(path), 1):
        step = number if record["step"] is None else record["step"]
        for name, value in record["metrics"].items():
            series.setdefault(name, []).append((step, value))
    return [_chart(name, np.array(points, float)) for name, points in series.items()]


def smoothed(values: Float[np.ndarray, "K"]) -> Float[np.ndarray, "K"]:
    """Centred moving average over a twentieth of the series; shorter windows at its ends."""
    half = max(1, len(values) // 40)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    low, high = np.maximum(index - half, 0), np.minimum(index + half + 1, len(values))
    return (sums[high] - sums[low]) / (high - low)


def _chart(name: str, points: Float[np.ndarray, "K 2"]) -> str:
    """A metric's values and their moving average against the iteration."""
    (steps, values), title = points.T, one_line(name.replace("_", " "))
    means, kind = smoothed(values), run_folder.kind_of(name)
    style = {
        "svg.fonttype": "none",
        "font.family": "sans-serif",
        "font.size": 10,
        "axes.edgecolor": SOFT,
        "axes.labelcolor": SOFT,
        "xtick.color": SOFT,
        "ytick.color": SOFT,
    }
    with mpl.rc_context(style):  # pyright: ignore[reportArgumentType]
        figure = Figure(figsize=SIZE, layout="constrained")
        axis = figure.subplots()
        axis.plot(steps, values, color=RAW, linewidth=0.8)
        axis.plot(steps, means, color=MEAN, linewidth=1.8)
        axis.set_title(plain_text.label(title), fontsize=11, loc="left", color=INK)
        axis.set(xlabel="iteration", ylabel=AXES[kind])
        axis.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", color=GRID, linewidth=0.8)
        axis.set_axisbelow(True)
        axis.margins(x=0.01)
        label = (
            f"Line chart: {title} over iterations {steps[0]:g} to {steps[-1]:g}; its moving "
            f"average begins at {means[0]:.3g} and ends at {means[-1]:.3g}."
        )
        return _svg(figure, name, label)


def _svg(figure: Figure, name: str, label: str) -> str:
    """A figure as an SVG element for a page that holds several.

    Args:
        figure: drawn in the colours of `VARIABLES`.
        name: of the figure, from which the identifiers in it are made.
        label: what the figure shows, for readers who do not see it.
    """
    buffer = io.StringIO()
    # A fixed salt and no date: the same run gives the same file.
    with mpl.rc_context({"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text[text.index("<svg") :], flags=re.DOTALL)
    # Figures share the names of their parts; identifiers are kept where something refers to them.
    used = set(re.findall(r"#([\w.-]+)", text))
    text = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in used else "", text)
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, f"var(--{variable})")
    return text.replace("<svg ", f'<svg role="img" aria-label="{html.escape(label)}" ', 1)
