"""Tables of results in Markdown.

Shares are in percent, with 95 % intervals in brackets: Wilson's, or in comparisons of methods the
bootstrap's over concepts.
"""

from collections.abc import Iterable, Sequence

from erase.evaluation.percent import number, points
from erase.evaluation.statistics import CELLS, ahead
from erase.report.plain_text import markdown as markdown_text
from erase.runtime.results import Comparison, Measure, MethodResult, Share, Side, Sums

NOTHING = "–"
# The row of the frozen model.
BASE = "base model"


def markdown(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table with its first column aligned to the left and the others to the right."""
    lines = [headings, ["---", *["---:"] * (len(headings) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def percent_headings(*names: str) -> list[str]:
    """Headings of columns in percent."""
    return [f"{name}, %" for name in names]


def interval(value: Share | None) -> str:
    """A share in percent with its interval; a dash where nothing was counted."""
    if value is None:
        return NOTHING
    return between(value, (value["low"], value["high"]))


def between(value: Share | float, ends: Sequence[float]) -> str:
    """A share in percent with the given ends of its interval."""
    low, high = ends
    return f"{number(value)} [{number(low)}, {number(high)}]"


def methods(result: Comparison) -> str:
    """A row for each method of a comparison, the best H first, after a row for the frozen model.

    If EraseAnything is among them, a column after H has the difference to EraseAnything's H.
    """
    every = by_rank(result)
    cells: tuple[Measure, ...] = (*CELLS, "H")
    ours = result["methods"].get("erase_anything")
    base = [shown_share(cell_side(every[0]["cells"], cell, "before")) for cell in cells]
    rows = [[BASE, *base, *[NOTHING] * (7 if ours else 6)]]
    for each in every:
        shares = {cell: cell_side(each["cells"], cell, "after") for cell in cells}
        shares["attacks"] = each["attacks"]
        texts = [
            NOTHING if value is None else between(value, each["intervals"][name])
            for name, value in shares.items()
        ]
        if ours:
            texts.insert(len(cells), NOTHING if each is ours else _gained(each, ours))
        seeds = each["frechet"]["seeds"]
        sizes = {
            "parameters": f"{each['parameters']:,}",
            "bytes": f"{each['bytes'] / 1000:.0f}",
            "seconds": f"{each['seconds']:.1f}",
            "memory": f"{each['memory'] / 1e6:.0f}",
        }
        rows.append(
            [
                markdown_text(each["title"]),
                *texts,
                f"{each['frechet']['mean']:.2f} [{min(seeds):.2f}, {max(seeds):.2f}]",
                *(text if each[name] else NOTHING for name, text in sizes.items()),
            ]
        )
    gain = ["H − EraseAnything's H, points"] if ours else []
    last = ["Fréchet distance", "parameters", "file, kB", "training, s", "memory, MB"]
    headings = ["method", *percent_headings(*cells), *gain, *percent_headings("attacks"), *last]
    return markdown(headings, rows)


def by_rank(result: Comparison) -> list[MethodResult]:
    """A comparison's methods, the best H first."""
    return sorted(result["methods"].values(), key=lambda each: -each["cells"].get("H", {})["after"])


def _gained(each: MethodResult, ours: MethodResult) -> str:
    """A difference of H in percentage points with its interval over concepts."""
    gain, low, high = map(points, ahead(each["rows"], ours["rows"]))
    return f"{gain} [{low}, {high}]"


def cell_side(cells: Sums, cell: Measure, side: Side) -> Share | float | None:
    """A side of a cell or of H; None where it was not counted, as Acc_g without synonyms."""
    return cells.get(cell, {}).get(side)


def shown_share(value: Share | float | None) -> str:
    """A share in percent; a dash where nothing was counted."""
    return NOTHING if value is None else number(value)
