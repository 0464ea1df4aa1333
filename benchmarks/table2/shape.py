"""The shape of the paper's Table 2: its rows, and its columns from two benchmarks' results."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.table2.prompts import CONCEPT, KINDS
from erase.benchmark.results import (
    RESULTS,
    BenchmarkResult,
    FigureRecord,
    JudgeRecord,
    RowRecord,
    read_result,
)
from erase.runtime.files import write
from flux_jax.errors import InputError


@dataclass(frozen=True)
class TableRow:
    """A row of Table 2.

    Attributes:
        title: as in the paper.
        settings: fields of the configuration that choose the method.
    """

    title: str
    settings: Mapping[str, str]


# By the names of their folders, in the paper's order; the base model follows.
ROWS: Mapping[str, TableRow] = {
    "ca_model": TableRow("CA (model-based)", {"method": "concept_ablation"}),
    "ca_noise": TableRow(
        "CA (noise-based)", {"method": "concept_ablation", "concept_ablation.target": "noise"}
    ),
    "esd": TableRow("ESD", {"method": "esd"}),
    "uce": TableRow("UCE", {"method": "uce"}),
    "mace": TableRow("MACE", {"method": "mace"}),
    "eap": TableRow("EAP", {"method": "eap"}),
    "meta_unlearning": TableRow("Meta-Unlearning", {"method": "meta_unlearning"}),
    "erase_anything": TableRow("EraseAnything", {"method": "erase_anything"}),
}
BASE = "base model"
# The order in which commands that take unlike times keep several lanes busy.
SLOWEST_FIRST = ("meta_unlearning", "erase_anything", "eap", *list(ROWS)[:3], "mace", "uce")
NOTE = (
    "The paper's Table 2 counts exposed body parts on FLUX.1 [dev], with FID and CLIP on COCO. "
    "These are another model, other prompts and other judges: nothing here compares with its "
    "figures."
)
# The columns in place of the paper's Common, Female, Male and Total.
ALL = f"{CONCEPT}, all"


def write_results(out: Path) -> list[Path]:
    """Write the two benchmarks' results with the table's rows and columns; return the files.

    Raises:
        InputError: a benchmark is missing or damaged, or has other rows.
    """
    made = []
    for name, columns in (("concept", concept_columns), ("captions", caption_columns)):
        path = out / name / RESULTS
        result = read_result(path)
        rows = in_papers_order(result, path)
        for row in rows:
            row["judges"] = columns({judge["judge"]: judge for judge in row["judges"]})
        notes = [*result["notes"], *([NOTE] if name == "captions" else [])]
        content: BenchmarkResult = {**result, "rows": rows, "notes": notes}
        made.append(out / f"{name}.json")
        write(made[-1], json.dumps(content, indent=1) + "\n")
    return made


def in_papers_order(result: BenchmarkResult, path: Path) -> list[RowRecord]:
    """Return the rows with the paper's titles, in its order; the base model's is the last.

    Raises:
        InputError: there are other rows.
    """
    names = [Path(*row["adapters"]).name if row["adapters"] else BASE for row in result["rows"]]
    wanted = {**{name: row.title for name, row in ROWS.items()}, BASE: BASE}
    if sorted(names) != sorted(wanted):
        raise InputError(
            f"{path} has the rows {', '.join(names)}; Table 2 needs {', '.join(wanted)}: remove "
            "the folder and run the command again"
        )
    rows = dict(zip(names, result["rows"], strict=True))
    return [{**rows[name], "title": title} for name, title in wanted.items()]


def concept_columns(judges: Mapping[str, JudgeRecord]) -> list[JudgeRecord]:
    """Return Acc by kind of prompt, and of all, from the counts of the concept."""
    judge = judges["emoji"]
    parts = {f"{CONCEPT}, {kind}": judge["groups"].get(kind, []) for kind in KINDS}
    figures = [
        as_share(each, title)
        for title, part in {**parts, ALL: judge["figures"]}.items()
        for each in part
        if each["name"] == CONCEPT
    ]
    return [{**judge, "figures": figures, "groups": {}}]


def as_share(count: FigureRecord, title: str) -> FigureRecord:
    """Return the share of pictures, in percent, from their count."""
    scale = 100 / count["pictures"]
    low, high = (None if end is None else scale * end for end in (count["low"], count["high"]))
    share = scale * count["value"]
    return {**count, "name": title, "value": share, "unit": "%", "low": low, "high": high}


def caption_columns(judges: Mapping[str, JudgeRecord]) -> list[JudgeRecord]:
    """Return the Fréchet distance, and the share of captions whose things are all found."""
    judge = judges["emoji"]
    found: list[FigureRecord] = [
        {**each, "name": "captions"} for each in judge["figures"] if each["name"] == "Acc"
    ]
    return [judges["frechet"], {**judge, "figures": found, "groups": {}}]
