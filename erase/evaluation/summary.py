"""Summary of many erased concepts: counts by kind, in the layout of the paper's Table 3.

Cells are those of an evaluation, or families of attacks. Two files are written next to the runs'
folders.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import cast

from convert import tables
from erase.evaluation.notes import left_out_note, mean_note
from erase.evaluation.percent import csv_of_shares, number_table, percent
from erase.evaluation.statistics import cells_of, pooled
from erase.runtime.files import write
from erase.runtime.results import Cells, Result, RunCounts, Summary, Worst
from erase.runtime.run_folder import SUMMARY_STEM as STEM

# Keys of `RunCounts`.
COUNTS = ("kind", "concept", "cells", "synonyms", "H", "concepts")


def summarise(results: Mapping[str, Result]) -> Summary:
    """Summarise the results of many runs by kind of concept, and all together.

    Args:
        results: results by the run's name, with at least kind, concept and cells.

    Returns:
        `kinds` and `all`, pooled; `worst`, the worst run of every cell, with its share; and `runs`,
        each one's kind, concept, cells, H, and counts by other concept.
    """
    runs = {name: _counts(result) for name, result in results.items()}
    by_kind: dict[str, list[Cells]] = {}
    for run in runs.values():
        by_kind.setdefault(run["kind"], []).append(run["cells"])
    total = pooled(run["cells"] for run in runs.values())
    worst: dict[str, Worst] = {}
    for cell in cells_of(total):
        cells_of_runs = {name: run["cells"] for name, run in runs.items() if cell in run["cells"]}
        shares = {name: cells[cell]["after"]["share"] for name, cells in cells_of_runs.items()}
        pick = min if cell == "Acc_ir" else max
        name = pick(shares, key=lambda each: shares[each])
        worst[cell] = {"run": name, "share": shares[name]}
    return {
        "kinds": {
            kind: {**pooled(cells), "concepts": len(cells)} for kind, cells in by_kind.items()
        },
        "all": {**total, "concepts": len(runs)},
        "worst": worst,
        "runs": runs,
    }


def _counts(result: Mapping[str, object]) -> RunCounts:
    return cast(RunCounts, {key: result[key] for key in COUNTS if key in result})


def table(summary: Summary) -> str:
    """Format a summary as comma-separated values, with a line for each run, kind, cell and side."""
    rows = [(n, run["kind"], run["concept"], run["cells"]) for n, run in summary["runs"].items()]
    rows += [("", kind, "", cells_of(sums)) for kind, sums in summary["kinds"].items()]
    rows.append(("", "", "", cells_of(summary["all"])))
    lines = [
        ((*named, cell, side), value)
        for *named, cells in rows
        for cell in cells
        for side, value in cells[cell].items()
    ]
    return csv_of_shares(("run", "kind", "concept", "cell", "side"), lines)


def write_summary(workdir: Path, results: Mapping[str, Result], stem: str = STEM) -> Summary | None:
    """Write and print a summary of the runs that were counted; returns None if there are none.

    Args:
        workdir: folder with the runs' folders.
        results: each run's kind, concept and cells, by the run's name.
        stem: file name of the two files, JSON and CSV, without the ending.
    """
    results = {name: result for name, result in results.items() if "cells" in result}
    if not results:
        return None
    summary = summarise(results)
    write(workdir / f"{stem}.json", json.dumps(summary, indent=1, ensure_ascii=False) + "\n")
    write(workdir / f"{stem}.csv", table(summary))
    show(summary)
    for name, result in results.items():
        if note := left_out_note(result):
            tables.show(f"{name}: {note}")
    if note := mean_note(summary["all"]):
        tables.show(note)
    return summary


def show(summary: Summary) -> None:
    """Print a summary: a line for each kind, and one for all."""
    cells = cells_of(summary["all"])
    means = ["H"] if "H" in summary["all"] else []
    sides = " → ".join(next(iter(cells.values())))
    title = f"Pictures in which the judge detects the concept, {sides}"
    lines = number_table(title, ("kind", "concepts", *cells, *means))
    for kind, sums in (*summary["kinds"].items(), ("all", summary["all"])):
        counted = cells_of(sums)
        texts = [" → ".join(map(percent, counted.get(cell, {}).values())) for cell in cells]
        texts += [" → ".join(map(percent, sums.get("H", {}).values())) for _ in means]
        lines.add_row(kind, str(sums.get("concepts")), *texts)
    tables.show(lines)
