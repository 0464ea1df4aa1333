"""Many evaluations in one table."""

import csv
import io
import json
from pathlib import Path

import pytest

from erase import summary
from erase.judge import share
from erase.summary import CELLS, harmonic_mean, pooled, summarise, write_summary


def result(kind: str, concept: str, after: tuple[int, int, int], of: int = 10) -> dict:
    """What evaluation.json holds of a run whose base finds everything."""
    found = dict(zip(CELLS, after, strict=True))
    cells = {c: {"before": share(of, of), "after": share(found[c], of)} for c in CELLS}
    return {"kind": kind, "concept": concept, "cells": cells, "pictures": ["not kept"]}


RESULTS = {
    "cat": result("entity", "cat", (1, 2, 10)),
    "car": result("entity", "car", (3, 0, 8)),
    "flat": result("style", "flat", (6, 5, 9)),
}


def test_pictures_of_a_kind_are_pooled():
    made = summarise(RESULTS)
    entity = made["kinds"]["entity"]
    assert entity["concepts"] == 2
    assert entity["Acc_e"]["after"] == share(4, 20)
    assert entity["Acc_ir"]["after"] == share(18, 20)
    assert entity["H"]["after"] == pytest.approx(3 / (1 / 0.8 + 1 / 0.9 + 1 / 0.9))
    assert made["kinds"]["style"]["Acc_g"]["after"] == share(5, 10)
    assert made["all"]["Acc_e"]["after"] == share(10, 30)
    assert made["all"]["H"]["after"] == harmonic_mean(made["all"], "after")
    assert "pictures" not in made["runs"]["cat"]


def test_the_worst_is_named():
    worst = summarise(RESULTS)["worst"]
    assert worst["Acc_e"] == {"run": "flat", "share": 0.6}
    assert worst["Acc_ir"] == {"run": "car", "share": 0.8}


def test_a_missing_cell_is_left_out():
    cells = [RESULTS["cat"]["cells"], {c: RESULTS["car"]["cells"][c] for c in ("Acc_e", "Acc_ir")}]
    assert pooled(cells)["Acc_g"]["after"] == share(2, 10)
    assert "H" not in pooled([cells[1]])


def test_files(tmp_path: Path, capsys: pytest.CaptureFixture):
    for name, each in {**RESULTS, "blind": {"note": "no judge"}}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "evaluation.json").write_text(json.dumps(each))
    assert write_summary(tmp_path, ["blind"]) is None
    made = write_summary(tmp_path, [*RESULTS, "blind"])
    assert json.loads((tmp_path / summary.FILE).read_text()) == made
    rows = list(csv.DictReader(io.StringIO((tmp_path / summary.SHEET).read_text())))
    # Three runs, two kinds and all: three cells of two sides each.
    assert len(rows) == 6 * 3 * 2
    flat = [row for row in rows if row["run"] == "flat" and row["side"] == "after"]
    assert [row["found"] for row in flat] == ["6", "5", "9"]
    printed = capsys.readouterr().out
    assert "entity" in printed
    assert "20.0 %" in printed
