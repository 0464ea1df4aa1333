"""Figures of results, drawn from the numbers in docs/results."""

import math
from collections.abc import Sequence

from matplotlib.figure import Figure

from benchmarks.results.labels import label
from benchmarks.results.schemas import CompositionsResult, StudyResult
from benchmarks.results.tables import sums
from erase.evaluation.percent import in_percent, percent
from erase.evaluation.statistics import cells_of
from erase.report.plain_text import label as plain
from erase.report.tables import by_rank, cell_side
from erase.runtime.results import Cell, Comparison, Share, Summary
from erase.survey.axes import AxesResult, chart_of
from erase.survey.chart import radar_figure

COLOURS = {"entity": "#0f766e", "style": "#b45309", "relation": "#6d28d9"}
LINES: dict[Cell, str] = {"Acc_e": "-", "Acc_g": ":", "Acc_ir": "--"}
MARKERS: dict[Cell, str] = {"Acc_e": "o", "Acc_g": "x", "Acc_ir": "D"}
# The axes of `methods`.
PLANE = ("Acc_e", "Acc_ir")
DIRECTIONS = {"Acc_e": "lower", "Acc_g": "lower", "Acc_ir": "higher", "H": "higher"}
SHARE = "share of pictures, %"


def composed(result: CompositionsResult) -> Figure:
    """Cells and H against the number of concepts in one adapter, a line for each method."""
    counts = result["counts"]
    numbers = [int(count) for count in counts]
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    axes = figure.subplots(1, 3, sharey=True)
    for axis, cell in zip(axes, ("Acc_e", "Acc_ir", "H"), strict=True):
        for number, name in enumerate(next(iter(counts.values()))):
            values = [cell_side(methods[name]["all"], cell, "after") for methods in counts.values()]
            heights = [math.nan if v is None else in_percent(v) for v in values]
            axis.plot(numbers, heights, "o-", ms=4, color=f"C{number}", label=plain(label(name)))
        axis.set(title=f"{cell} ({DIRECTIONS[cell]} is better)", xscale="log", ylim=(-3, 103))
        axis.set(xlabel="concepts in one adapter (log scale)", ylabel=f"{cell}, %")
        axis.set_xticks(numbers, [*map(plain, counts)])
        axis.minorticks_off()
    labels = axes[0].get_legend_handles_labels()
    figure.legend(*labels, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    return _plain(figure)


def methods(result: Comparison) -> Figure:
    """Acc_e against Acc_ir of methods; a marker's area is the share of successful attacks."""
    figure = Figure(figsize=(7.5, 5), layout="constrained")
    axis = figure.subplots()
    every = by_rank(result)
    for number, each in enumerate(every):
        colour, cells = f"C{number}", cells_of(each["cells"])
        shares = [cells[cell]["after"]["share"] for cell in PLANE]
        spans = [each["intervals"][cell] for cell in PLANE]
        errors = [
            _errors([(share, low, high)]) for share, (low, high) in zip(shares, spans, strict=True)
        ]
        x, y = map(in_percent, shares)
        axis.errorbar(x, y, xerr=errors[0], yerr=errors[1], color=colour, lw=0.8, zorder=1)
        success = each["attacks"]["share"]
        axis.scatter(x, y, _area(success), color=colour, alpha=0.75, zorder=2)
        title = plain(f"{each['title']}, {percent(success)}")
        axis.plot([], [], "o", color=colour, alpha=0.75, label=title)
    before = [in_percent(cells_of(every[0]["cells"])[cell]["before"]) for cell in PLANE]
    axis.plot(*before, "k+", ms=10, label="base model")
    axis.set_xlabel("Acc_e: erased concept detected, % of pictures (lower is better)")
    axis.set_ylabel("Acc_ir: other concepts detected, % of pictures (higher is better)")
    # Nothing is below the worst method's interval, and the best are close together.
    axis.set_xlim(-3, 103)
    axis.set_ylim(top=103)
    figure.legend(
        title="Successful attacks\n(area of the marker)",
        loc="outside right upper",
        frameon=False,
        fontsize=8,
    )
    return _plain(figure)


def _area(share: float) -> float:
    """The area of a marker in square points; that of 0 is still visible."""
    return 15 + 600 * share


def axes(result: AxesResult) -> Figure:
    """The user study's radar chart, with values that a judge measured."""
    return radar_figure(*chart_of(result))


def curve(study: StudyResult, along: str) -> Figure:
    """Shares against the number that names each variant of a study; the base model is at 0.

    Args:
        study: its numbers.
        along: the title of the horizontal axis, with its unit.
    """
    figure = Figure(figsize=(7.5, 4), layout="constrained")
    axis = figure.subplots()
    steps = [0.0, *map(float, study["variants"])]
    for kind, colour in COLOURS.items():
        every = [cells_of(sums(variant, kind)) for variant in study["variants"].values()]
        for cell, line in LINES.items():
            shares = [every[0][cell]["before"], *(each[cell]["after"] for each in every)]
            axis.plot(
                steps, [in_percent(s) for s in shares], line, color=colour, label=f"{kind} {cell}"
            )
    axis.set(xlabel=plain(along), ylabel=SHARE, ylim=(-2, 102))
    axis.legend(ncols=3, frameon=False, fontsize=8, loc="center right")
    return _plain(figure)


def dots(study: StudyResult) -> Figure:
    """A row for each variant, a panel for each kind: every cell with its interval."""
    names = [plain(label(name)) for name in study["variants"]]
    figure = Figure(figsize=(10, 1.1 + 0.28 * len(names)), layout="constrained")
    axes = figure.subplots(1, len(COLOURS), sharey=True)
    for axis, (kind, colour) in zip(axes, COLOURS.items(), strict=True):
        every = [cells_of(sums(variant, kind)) for variant in study["variants"].values()]
        for place, (cell, marker) in enumerate(MARKERS.items()):
            values = [each[cell]["after"] for each in every]
            at = [index + 0.2 * (place - 1) for index in range(len(names))]
            shares = [in_percent(v) for v in values]
            errors = _errors(list(map(_ends, values)))
            axis.errorbar(shares, at, xerr=errors, fmt=marker, color=colour, ms=4, lw=1, label=cell)
        axis.set(title=kind, xlabel=SHARE, xlim=(-3, 103))
    axes[0].set_yticks(range(len(names)), names)
    axes[0].invert_yaxis()
    labels = axes[0].get_legend_handles_labels()
    figure.legend(*labels, loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    return _plain(figure)


def attack_bars(summary: Summary) -> Figure:
    """Successful attacks on the base model, with its tokens silenced, and with the adapter."""
    cells = cells_of(summary["all"])
    figure = Figure(figsize=(7.5, 3.3), layout="constrained")
    axis = figure.subplots()
    bars = {
        "before": ("base model", "#cbd5e1"),
        "silenced": ("attention map erasure", "#b45309"),
        "after": ("adapter", "#0f766e"),
    }
    for place, (side, (name, colour)) in enumerate(bars.items()):
        values = [sides[side] for sides in cells.values()]
        at = [index + 0.27 * (place - 1) for index in range(len(cells))]
        heights = [in_percent(v) for v in values]
        axis.bar(
            at,
            heights,
            0.25,
            yerr=_errors(list(map(_ends, values))),
            color=colour,
            label=name,
            capsize=2,
        )
    axis.set_xticks(range(len(cells)), [*map(plain, cells)])
    axis.set(xlabel="change of the prompt", ylabel="concept detected,\n% of pictures")
    figure.legend(loc="outside upper center", ncols=3, frameon=False, fontsize=8)
    return _plain(figure)


def _ends(value: Share) -> tuple[float, float, float]:
    """A share and the ends of its interval."""
    return value["share"], value["low"], value["high"]


def _errors(values: Sequence[tuple[float, float, float]]) -> list[list[float]]:
    """How far intervals reach below and above their shares, in percent."""
    below = [in_percent(share - low) for share, low, _ in values]
    return [below, [in_percent(high - share) for share, _, high in values]]


def _plain(figure: Figure) -> Figure:
    for axis in figure.axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(color="#eceff3", linewidth=0.8)
        axis.set_axisbelow(True)
    return figure
