"""Summary of many evaluations in one table."""

import csv
import io
import json
from pathlib import Path

import pytest

from benchmarks.results import tables
from erase.evaluation import summary
from erase.evaluation.notes import mean_note
from erase.evaluation.statistics import (
    CELLS,
    ahead,
    cells_of,
    harmonic_mean,
    over_concepts,
    pooled,
    wilson_interval,
)
from erase.evaluation.summary import summarise, write_summary
from erase.report.tables import NOTHING


def result(kind: str, concept: str, after: tuple[int, int, int], of: int = 10) -> dict:
    """Contents of the evaluation.json of a run whose base model finds everything."""
    found = dict(zip(CELLS, after, strict=True))
    cells = {
        c: {"before": wilson_interval(of, of), "after": wilson_interval(found[c], of)}
        for c in CELLS
    }
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
    assert entity["Acc_e"]["after"] == wilson_interval(4, 20)
    assert entity["Acc_ir"]["after"] == wilson_interval(18, 20)
    assert entity["H"]["after"] == pytest.approx(3 / (1 / 0.8 + 1 / 0.9 + 1 / 0.9))
    assert made["kinds"]["style"]["Acc_g"]["after"] == wilson_interval(5, 10)
    assert made["all"]["Acc_e"]["after"] == wilson_interval(10, 30)
    assert made["all"]["H"]["after"] == harmonic_mean(made["all"], "after")
    assert "pictures" not in made["runs"]["cat"]


def test_intervals_are_over_concepts_and_not_pictures():
    """Half of the concepts are erased fully, half not at all: pictures would give 45 to 55 %."""
    rows = [
        {
            "concept": str(index // 2),
            "cells": result("entity", "", (found, found, 64), 64)["cells"],
            "attacks": wilson_interval(0, 10),
        }
        for index in range(24)
        for found in [64 * (index // 2 % 2)]
    ]
    found = over_concepts(rows)
    assert list(found) == [*CELLS, "H", "attacks"]
    low, high = found["Acc_e"]
    # The standard error of a mean of twelve 0s and 1s is 14.4 %.
    assert low == pytest.approx(0.5 - 1.96 * 0.144, abs=0.06)
    assert high == pytest.approx(0.5 + 1.96 * 0.144, abs=0.06)
    assert found["Acc_ir"] == [1.0, 1.0]
    assert found["attacks"] == [0.0, 0.0]
    assert found["H"] == pytest.approx([3 / (1 + 2 / (1 - high)), 3 / (1 + 2 / (1 - low))])
    # Runs of the same concept are grouped.
    alone = over_concepts([row | {"concept": "cat"} for row in rows])
    assert alone["Acc_e"] == [0.5, 0.5]


@pytest.mark.slow
def test_what_all_concepts_gain_shows_where_they_differ_more_than_methods():
    """Concepts lose 5 to 60 %; the other method loses 3 % more on each."""

    def rows(more: int) -> list[dict]:
        return [
            {
                "concept": str(lost),
                "cells": result("entity", "", (0, 0, 100 - lost - more), 100)["cells"],
                "attacks": wilson_interval(0, 10),
            }
            for lost in range(5, 65, 5)
            for _ in range(2)
        ]

    better, worse = over_concepts(rows(0))["H"], over_concepts(rows(3))["H"]
    assert worse[1] > better[0]
    gain, low, high = ahead(rows(0), rows(3))
    assert gain == pytest.approx(3 / (2 + 1 / 0.675) - 3 / (2 + 1 / 0.645))
    assert 0.01 < low < gain < high < 0.02
    assert ahead(rows(0), rows(3)[::-1]) == (gain, low, high)
    assert ahead(rows(3), rows(0)) == pytest.approx((-gain, -high, -low))
    assert ahead(rows(3), rows(3)) == (0.0, 0.0, 0.0)


def test_the_worst_is_named():
    worst = summarise(RESULTS)["worst"]
    assert worst["Acc_e"] == {"run": "flat", "share": 0.6}
    assert worst["Acc_ir"] == {"run": "car", "share": 0.8}


def test_a_missing_cell_is_left_out():
    cells = [RESULTS["cat"]["cells"], {c: RESULTS["car"]["cells"][c] for c in ("Acc_e", "Acc_ir")}]
    assert pooled(cells)["Acc_g"]["after"] == wilson_interval(2, 10)
    alone = pooled([cells[1]])
    # Over the available cells: 7 of 10 erased, 8 of 10 preserved.
    assert alone["H"]["after"] == pytest.approx(2 / (1 / 0.7 + 1 / 0.8))
    assert "Acc_e and Acc_ir alone" in mean_note(alone)
    assert mean_note(pooled(cells)) == ""
    assert "H" not in pooled([{"Acc_e": cells[1]["Acc_e"]}])


def test_intervals_and_tables_without_other_words():
    rows = [
        {
            "concept": str(lost),
            "cells": result("entity", "", (lost, lost, 10 - lost))["cells"],
            "attacks": wilson_interval(lost, 10),
        }
        for lost in range(6)
    ]
    every = over_concepts(rows)
    for row in rows[1:]:
        del row["cells"]["Acc_g"]
    some = over_concepts(rows)
    assert some["Acc_g"] == [0.0, 0.0]
    assert (some["Acc_e"], some["attacks"]) == (every["Acc_e"], every["attacks"])
    del rows[0]["cells"]["Acc_g"]
    none = over_concepts(rows)
    assert list(none) == ["Acc_e", "Acc_ir", "H", "attacks"]
    # Both terms are equal here, so their mean equals that of three.
    assert none["H"] == pytest.approx(every["H"])
    assert ahead(rows, rows) == (0.0, 0.0, 0.0)
    made = summarise({str(i): {"kind": "entity", **row} for i, row in enumerate(rows)})
    for table in (tables.kinds(made), tables.runs(made)):
        assert NOTHING in table


def test_families_of_attacks_are_cells_of_three_sides():
    def attacked(kind: str, found: tuple[int, int, int], *families: str) -> dict:
        shares = [wilson_interval(count, 10) for count in found]
        sides = dict(zip(("before", "silenced", "after"), shares, strict=True))
        return {"kind": kind, "concept": kind, "cells": dict.fromkeys(families, sides)}

    made = summarise(
        {
            "cat": attacked("entity", (9, 5, 1), "misspelt", "shuffled"),
            "on": attacked("relation", (8, 4, 2), "misspelt"),
        }
    )
    families = cells_of(made["all"])
    assert families["misspelt"]["silenced"] == wilson_interval(9, 20)
    assert families["shuffled"]["after"] == wilson_interval(1, 10)
    assert "shuffled" not in made["kinds"]["relation"]
    assert made["worst"]["misspelt"] == {"run": "on", "share": 0.2}
    assert len(summary.table(made).splitlines()) == 1 + 3 * (2 + 1 + 2 + 1 + 2)


def test_files(tmp_path: Path, capsys: pytest.CaptureFixture):
    blind = {"blind": {"note": "no judge"}}
    assert write_summary(tmp_path, blind) is None
    made = write_summary(tmp_path, RESULTS | blind)
    assert json.loads((tmp_path / "summary.json").read_text()) == made
    rows = list(csv.DictReader(io.StringIO((tmp_path / "summary.csv").read_text())))
    # Three runs, two kinds and all: three cells of two sides each.
    assert len(rows) == 6 * 3 * 2
    flat = [row for row in rows if row["run"] == "flat" and row["side"] == "after"]
    assert {row["cell"]: row["found"] for row in flat} == {
        "Acc_e": "6",
        "Acc_g": "5",
        "Acc_ir": "9",
    }
    printed = capsys.readouterr().out
    assert "entity" in printed
    assert "20.0 %" in printed
