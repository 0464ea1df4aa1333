"""Many erased concepts in one table: counts by kind, in the shape of the paper's Table 3.

Cells are an evaluation's, or families of attacks. Two files are written beside the runs' folders.
"""

import csv
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.stats import bootstrap, hmean

from erase.judge import share
from erase.notes import left_out_note, mean_note
from erase.percent import percent
from erase.pictures import write

CELLS = ("Acc_e", "Acc_g", "Acc_ir")
STEM = "summary"
# Of the bootstrap.
SAMPLES = 2000
SIDES = ("before", "after")
# Of what a run's result holds.
KEPT = ("kind", "concept", "cells", "synonyms", "H", "concepts")


def harmonic_mean(cells: Mapping[str, Any], side: str) -> float:
    """H: the harmonic mean of 1 - Acc_e, Acc_ir and 1 - Acc_g, in [0, 1]; greater is better.

    Args:
        cells: shares by side of Acc_e, Acc_ir and, where it was counted, Acc_g; see `has_mean`.
        side: "before" or "after".
    """
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
        return _good(drawn[..., 0, :, :]) - _good(drawn[..., 1, :, :])

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
    erased, other_words, kept, _ = _shares(counts)
    good = 1 - erased, kept
    every = hmean([*good, 1 - np.nan_to_num(other_words)], axis=0)
    # Where no synonym was counted, the mean is that of the other two.
    return np.where(np.isnan(other_words), hmean(good, axis=0), every)


def _ends(every: Sequence[np.ndarray], of: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """The interval [..., 2] of a function of concepts' counts [..., 4, 2] summed over samples."""
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


def summarise(results: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Results of many runs by kind of concept, and all together.

    Args:
        results: each run's kind, concept and cells, whatever else it holds, by the run's name.

    Returns:
        `kinds` and `all`, pooled; `worst`, for every cell the concept that is furthest from where
        it should be; and `runs`, each one's kind, concept, cells, H, and counts by other concept.
    """
    runs = {
        name: {key: result[key] for key in KEPT if key in result}
        for name, result in results.items()
    }
    by_kind: dict[str, list[Any]] = {}
    for run in runs.values():
        by_kind.setdefault(run["kind"], []).append(run["cells"])
    total = pooled(run["cells"] for run in runs.values())
    worst = {}
    for cell in [name for name in total if name != "H"]:
        having = {name: run["cells"] for name, run in runs.items() if cell in run["cells"]}
        shares = {name: cells[cell]["after"]["share"] for name, cells in having.items()}
        pick = min if cell == "Acc_ir" else max
        name = pick(shares, key=lambda each: shares[each])
        worst[cell] = {"run": name, "share": shares[name]}
    return {
        "kinds": {
            kind: pooled(cells) | {"concepts": len(cells)} for kind, cells in by_kind.items()
        },
        "all": total | {"concepts": len(runs)},
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
        for cell in [name for name in cells if name in summary["worst"]]:
            for side, value in cells[cell].items():
                values = (value[column] for column in columns)
                lines.writerow((name, kind, concept, cell, side, *values))
    return text.getvalue()


def write_summary(
    workdir: Path, results: Mapping[str, Mapping[str, Any]], stem: str = STEM
) -> dict[str, Any] | None:
    """Sums up runs that have been counted, on the terminal too; None if none of them has.

    Args:
        workdir: folder with the runs' folders.
        results: each run's kind, concept and cells, by its name.
        stem: of the two files, JSON and CSV.
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
            Console().print(f"{name}: {note}", markup=False)
    if note := mean_note(summary["all"]):
        Console().print(note, markup=False)
    return summary


def show(summary: Mapping[str, Any]) -> None:
    """Prints a summary: a line for each kind, and one for all."""
    cells = [cell for cell in summary["all"] if cell != "concepts"]
    sides = " → ".join(summary["all"][cells[0]])
    shown = Table(title=f"Pictures in which the judge finds what it looks for, {sides}")
    for heading in ("kind", "concepts", *cells):
        shown.add_column(heading, justify="left" if heading == "kind" else "right")
    for kind, sums in (*summary["kinds"].items(), ("all", summary["all"])):
        texts = []
        for cell in cells:
            texts.append(" → ".join(map(percent, sums.get(cell, {}).values())))
        shown.add_row(kind, str(sums["concepts"]), *texts)
    Console().print(shown)
