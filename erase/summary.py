"""Many erased concepts in one table: counts by kind, in the shape of the paper's Table 3.

Reads the runs' evaluation.json; writes summary.json and summary.csv beside their folders.
"""

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from scipy.stats import hmean

from erase import report
from erase.judge import share
from erase.pictures import write

CELLS = ("Acc_e", "Acc_g", "Acc_ir")
FILE, SHEET = "summary.json", "summary.csv"
SIDES = ("before", "after")


def harmonic_mean(cells: Mapping[str, Any], side: str) -> float:
    """H: the harmonic mean of 1 - Acc_e, Acc_ir and 1 - Acc_g, in [0, 1]; greater is better.

    Args:
        cells: for every name in `CELLS`, shares by side.
        side: "before" or "after".
    """
    erased, other_words, kept = (cells[c][side]["share"] for c in ("Acc_e", "Acc_g", "Acc_ir"))
    return float(hmean([1 - erased, kept, 1 - other_words]))


def pooled(cells: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Cells of several concepts as one: all pictures together, each concept having as many.

    Args:
        cells: of each concept, shares by cell and side; a concept may lack a cell.

    Returns:
        Cells of the same form, and `H` by side where all three cells are there.
    """
    cells = list(cells)
    sums: dict[str, Any] = {}
    for cell in CELLS:
        having = [each[cell] for each in cells if cell in each]
        if having:
            sums[cell] = {
                side: share(
                    sum(each[side]["found"] for each in having),
                    sum(each[side]["of"] for each in having),
                )
                for side in SIDES
            }
    if set(sums) == set(CELLS):
        sums["H"] = {side: harmonic_mean(sums, side) for side in SIDES}
    return sums


def summarise(results: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Results of many runs by kind of concept, and all together.

    Args:
        results: what evaluation.json of each run holds, by the run's name.

    Returns:
        `kinds` and `all`, pooled; `worst`, for every cell the concept that is furthest from where
        it should be; and `runs`, each one's kind, concept and cells.
    """
    runs = {
        name: {key: result[key] for key in ("kind", "concept", "cells", "H") if key in result}
        for name, result in results.items()
    }
    by_kind: dict[str, list[Any]] = {}
    for run in runs.values():
        by_kind.setdefault(run["kind"], []).append(run["cells"])
    worst = {}
    for cell in CELLS:
        having = {name: run["cells"] for name, run in runs.items() if cell in run["cells"]}
        shares = {name: cells[cell]["after"]["share"] for name, cells in having.items()}
        if shares:
            pick = min if cell == "Acc_ir" else max
            name = pick(shares, key=lambda each: shares[each])
            worst[cell] = {"run": name, "share": shares[name]}
    return {
        "kinds": {
            kind: pooled(cells) | {"concepts": len(cells)} for kind, cells in by_kind.items()
        },
        "all": pooled(run["cells"] for run in runs.values()) | {"concepts": len(runs)},
        "worst": worst,
        "runs": runs,
    }


def table(summary: Mapping[str, Any]) -> str:
    """A summary as comma-separated values: a line for each run, kind, cell and side."""
    text = io.StringIO()
    columns = ("found", "of", "share", "low", "high")
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(("run", "kind", "concept", "cell", "side", *columns))
    rows = [(n, run["kind"], run["concept"], run["cells"]) for n, run in summary["runs"].items()]
    rows += [("", kind, "", cells) for kind, cells in summary["kinds"].items()]
    rows.append(("", "", "", summary["all"]))
    for name, kind, concept, cells in rows:
        for cell in CELLS:
            for side in SIDES if cell in cells else ():
                values = (cells[cell][side][column] for column in columns)
                lines.writerow((name, kind, concept, cell, side, *values))
    return text.getvalue()


def write_summary(workdir: Path, names: Sequence[str]) -> dict[str, Any] | None:
    """Sums up the runs in a folder that have been counted; None if none of them has.

    Args:
        workdir: folder with the runs' folders.
        names: theirs.
    """
    results = {name: json.loads((workdir / name / "evaluation.json").read_text()) for name in names}
    results = {name: result for name, result in results.items() if "cells" in result}
    if not results:
        return None
    summary = summarise(results)
    write(workdir / FILE, json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
    write(workdir / SHEET, table(summary))
    show(summary)
    return summary


def show(summary: Mapping[str, Any]) -> None:
    """Prints a summary: a line for each kind, and one for all."""
    shown = Table(title="Pictures in which the judge finds what it looks for, before → after")
    for heading in ("kind", "concepts", *CELLS, "H"):
        shown.add_column(heading, justify="left" if heading == "kind" else "right")
    for kind, cells in (*summary["kinds"].items(), ("all", summary["all"])):
        texts = []
        for cell in (*CELLS, "H"):
            values = [cells[cell][side] for side in SIDES] if cell in cells else []
            shares = [v if cell == "H" else v["share"] for v in values]
            texts.append(" → ".join(report.percent(value, 1) for value in shares))
        shown.add_row(kind, str(cells["concepts"]), *texts)
    Console().print(shown)
