r"""Average a row of Table 3 or 4 over its concepts or persons, from the results of benchmarks.

    python -m configs.flux.average results/cat/results.json results/dog/results.json \
        --title "EraseAnything (entity)" --out results/entity.json

Each file has the row of one adapter; a row of the base model is left out. The shares of all files
count the same, however many pictures each has. Intervals are Student's t over the files, at 95 %.
`erase-anything table results/entity.json` shows the average beside the paper's.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import cast

from convert.arguments import Parser
from erase.benchmark.results import (
    FORMAT,
    BenchmarkResult,
    FigureRecord,
    JudgeRecord,
    RowRecord,
    read_result,
)
from erase.runtime.files import write
from flux_jax.errors import InputError, exits_cleanly, say

# Settings that each file has its own of.
OWN = ("prompts", "prompts_sha256", "where")


def row_of(result: BenchmarkResult, path: Path) -> RowRecord:
    """Return the row of a result's adapter.

    Raises:
        InputError: there is none, or there are several.
    """
    rows = [row for row in result["rows"] if row["adapters"]]
    if len(rows) != 1:
        raise InputError(f"{path} has {len(rows)} rows with adapters; take one adapter's results")
    return rows[0]


def average(results: Sequence[BenchmarkResult], paths: Sequence[Path], title: str) -> RowRecord:
    """Average the shares of one row in each result.

    Args:
        results: of one concept each.
        paths: their files, for messages.
        title: title of the averaged row.

    Raises:
        InputError: results are of different judges, or have no shares in common.
    """
    rows = [row_of(result, path) for result, path in zip(results, paths, strict=True)]
    judges: list[JudgeRecord] = []
    for place, judge in enumerate(rows[0]["judges"]):
        alike = []
        for row, path in zip(rows, paths, strict=True):
            other = row["judges"][place] if place < len(row["judges"]) else None
            if other is None or other["description"] != judge["description"]:
                raise InputError(
                    f"{path}: its judge {judge['judge']} differs from that of {paths[0]} in model, "
                    "classes or settings, or is missing; judge both alike"
                )
            alike.append(_shares(other, path))
        names = [name for name in alike[0] if all(name in each for each in alike)]
        figures = [averaged([each[name] for each in alike]) for name in names]
        judges.append({**judge, "figures": figures, "groups": {}})
    if not any(judge["figures"] for judge in judges):
        raise InputError(f"{paths[0]} has no share in percent that all files have; see its judges")
    pictures = sum(row["pictures"] for row in rows)
    return {"title": title, "adapters": [], "pictures": pictures, "judges": judges}


def _shares(judge: JudgeRecord, path: Path) -> dict[str, FigureRecord]:
    """Return a judge's figures in percent, by name.

    Raises:
        InputError: one is not from 0 to 100 %.
    """
    shares = {each["name"]: each for each in judge["figures"] if each["unit"] == "%"}
    for name, each in shares.items():
        if not 0 <= each["value"] <= 100:
            raise InputError(
                f"{path}: {name} = {each['value']} % must be from 0 to 100 %; judge again"
            )
    return shares


def averaged(figures: Sequence[FigureRecord]) -> FigureRecord:
    """Return the mean of one figure over several files, with its interval within 0 and 100 %."""
    from erase.judges.figures import mean

    found = asdict(mean(figures[0]["name"], [each["value"] for each in figures]))
    found |= {"unit": "%", "pictures": sum(each["pictures"] for each in figures)}
    if found["low"] is not None:
        found |= {"low": max(found["low"], 0.0), "high": min(found["high"], 100.0)}
    return cast(FigureRecord, found)


@exits_cleanly
def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; see the module's docstring."""
    parser = Parser("configs.flux.average", __doc__)
    parser.add_argument("results", nargs="+", type=Path, metavar="RESULTS")
    parser.add_argument("--title", required=True, help="title of the row")
    parser.add_argument("--out", type=Path, required=True, help="JSON file for the average")
    options = parser.parse_args(arguments)
    paths = list(dict.fromkeys(options.results))
    if not options.title.strip():
        raise InputError("title = '' is empty; name the row")
    if options.out.resolve() in [path.resolve() for path in paths]:
        raise InputError(f"out = {str(options.out)!r} is one of the results; name another file")
    if len(paths) < 2:
        raise InputError(
            f"RESULTS: {paths[0]} alone has no average; name the results of at least two concepts"
        )
    results = [read_result(path) for path in paths]
    first = results[0]
    common = {name: value for name, value in first["settings"].items() if name not in OWN}
    for result, path in zip(results, paths, strict=True):
        theirs = {name: value for name, value in result["settings"].items() if name not in OWN}
        if unlike := [name for name in common if theirs.get(name) != common[name]]:
            raise InputError(
                f"{path}: {unlike[0]} = {theirs.get(unlike[0])!r:.60} differs from "
                f"{common[unlike[0]]!r:.60} in {paths[0]}; draw both alike"
            )
    made: BenchmarkResult = {
        "format": FORMAT,
        "model": first["model"],
        "prompts": f"{len(results)} prompt sets",
        "settings": common,
        "notes": [f"{options.title}: the mean of {len(results)} results, intervals over these."],
        "rows": [average(results, paths, options.title)],
    }
    write(options.out, json.dumps(made, indent=2) + "\n")
    say(str(options.out))


if __name__ == "__main__":
    main()
