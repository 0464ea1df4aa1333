"""The page of results: every table and figure, and that the committed page has these numbers."""

import functools
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from matplotlib.collections import PathCollection
from matplotlib.container import ErrorbarContainer
from PIL import Image

from benchmarks.results import figures, labels
from benchmarks.results import page as results
from benchmarks.results.page import draw, read_numbers
from erase.evaluation.statistics import CELLS, cells_of, pooled, wilson_interval
from erase.evaluation.summary import summarise
from erase.survey.axes import AXES
from flux_jax.errors import InputError

ROOT = Path(__file__).resolve().parents[1]
KINDS = {"soccer ball": "entity", "flat": "style", "left of": "relation"}


def cells(found: int) -> dict:
    names = {"Acc_e": found, "Acc_g": found, "Acc_ir": 10 - found}
    return {
        cell: {"before": wilson_interval(9, 10), "after": wilson_interval(n, 10)}
        for cell, n in names.items()
    }


def attacked(found: int) -> dict:
    sides = dict(zip(("before", "silenced", "after"), (9, 5, found), strict=True))
    return {"misspelt": {side: wilson_interval(n, 10) for side, n in sides.items()}}


def counted(concept: str, found: int) -> list[dict]:
    others = {"right of": (3, 0, 3), "on": (5, 5 - found, 7)} if concept == "left of" else {}
    names = ("before", "after", "of")
    return [{"concept": o, **dict(zip(names, n, strict=True))} for o, n in others.items()]


def compared(title: str, found: int) -> dict:
    return {
        "title": title,
        "cells": pooled([cells(found)]),
        "intervals": dict.fromkeys(("Acc_e", "Acc_g", "Acc_ir", "H", "attacks"), (0.05, 0.95)),
        "attacks": wilson_interval(found, 10),
        "rows": [{"concept": "cat", "cells": cells(found), "attacks": wilson_interval(found, 10)}],
        "frechet": {"mean": 1.5, "seeds": [1.25, 1.75]},
        "parameters": 12345,
        "bytes": 50_000,
        "seconds": 2.34,
        "memory": 7_600_000,
    }


AXIS = {"value": 0.5, "low": 0.25, "high": 0.75, "of": 10}
AXES_RESULT = {
    "concept": "car",
    "methods": {
        name: {**dict.fromkeys(AXES, AXIS), "diversity": {**AXIS, "value": wide, "low": None}}
        for name, wide in (("base", 1.0), ("MACE", 1.125))
    },
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Numbers of every kind, and a template that uses all of them."""
    made = tmp_path / "docs" / "numbers"
    made.mkdir(parents=True)
    runs = {
        concept: {"kind": kind, "concept": concept, "cells": cells(i), "H": {}}
        | {"concepts": counted(concept, i)}
        for i, (concept, kind) in enumerate(KINDS.items())
    }
    attacks = {c: {"kind": k, "concept": c, "cells": attacked(2)} for c, k in KINDS.items()}
    rows = [
        {"kind": kind, "concept": concept, "seed": seed, "iterations": 10 + seed}
        | {"cells": cells(seed)}
        for concept, kind in KINDS.items()
        for seed in (0, 4)
    ]
    study = {"seeds": [0, 4], "variants": {str(n): {"rows": rows} for n in (10, 20)}}
    speed = {"runs": [{"concepts": n, "compile_s": 20.0, "iteration_ms": 10.0} for n in (1, 5)]}
    both = {"own": wilson_interval(9, 10), "converse": wilson_interval(1, 10)}
    numbers = {
        "all": summarise(runs),
        "attacks": summarise(attacks),
        "study": study,
        "speed": speed,
        "composed": {
            "counts": {
                str(n): {
                    "sum": {
                        "strength": 0.5,
                        "all": pooled([cells(n)]),
                        "kinds": {kind: cells(n) for kind in KINDS.values()},
                    }
                }
                for n in (2, 3)
            }
        },
        "compared": {
            "methods": {
                "worse": compared("Worse", 4),
                "better": compared("Better", 1),
                "silent": compared("Silent", 2)
                | dict.fromkeys(("parameters", "bytes", "seconds", "memory"), 0),
            }
        },
        "beside": {
            "methods": {
                "esd": compared("Worse", 4),
                "erase_anything": compared("EraseAnything", 1),
            }
        },
        "full_size": {
            "methods": {
                "one": {"title": "One", "updates": 20, "update_s": 0.1234, "memory": 30.6e9}
                | {"parameters": 10**6, "whole_s": 99.6},
                "closed": {"title": "Closed", "updates": 0, "update_s": None, "memory": 0}
                | {"parameters": 10, "whole_s": 5.0},
                "large": {"title": "Large", "error": "out of memory"},
            }
        },
        "relearnt": {
            "stops": [0, 10],
            "methods": {"a": {"title": "A", "steps": {"0": rows, "10": rows[:1]}}},
        },
        "axes": AXES_RESULT,
        "swapped": {"relations": {"above": {"nothing": both}}},
    }
    for name, value in numbers.items():
        (made / f"{name}.json").write_text(json.dumps(value))
    return made


def page(folder: Path, text: str) -> list[str]:
    (folder / results.TEMPLATE).write_text(text)
    out = folder.parents[1] / "PAGE.md"
    draw(folder, out)
    return out.read_text().splitlines()


def test_tables_of_runs(folder: Path):
    lines = page(folder, '{{ kinds("all") }}')
    assert lines[0] == "| kind | concepts | Acc_e, % | Acc_g, % | Acc_ir, % | H, % |"
    entity = "| entity | 1 | 90.0 → 0.0 [0.0, 27.8] | 90.0 → 0.0 [0.0, 27.8] | 90.0 → 100.0 ["
    assert lines[2].startswith(entity)
    assert lines[5].startswith("| all | 3 | 90.0 → 10.0 [")
    assert page(folder, '{{ runs("all") }}')[3] == (
        "| flat | style | 90.0 → 10.0 | 90.0 → 10.0 | 90.0 → 90.0 |"
    )
    alone = json.loads((folder / "all.json").read_text())
    del alone["runs"]["flat"]["cells"]["Acc_g"]
    (folder / "alone.json").write_text(json.dumps(alone))
    assert page(folder, '{{ runs("alone") }}')[3] == (
        "| flat | style | 90.0 → 10.0 | – | 90.0 → 90.0 |"
    )
    lines = page(folder, '{{ apart("all", {"left of": "right of"}) }}')
    assert lines[2].startswith("| all | 10 | 80.0 | 30.0 [")
    assert lines[3].startswith("| the converse | 3 | 100.0 | 0.0 [")
    assert lines[4].startswith("| the rest | 7 | 71.4 | 42.9 [")


def test_tables_of_studies(folder: Path):
    lines = page(folder, '{{ variants("study") }}')
    assert lines[2].startswith("| base model | 90.0 / 90.0 / 90.0 / 14.2 | 90.0 /")
    assert lines[4].startswith("| 20 | 20.0 / 20.0 / 80.0 / 80.0 |")
    assert lines[4].endswith("| 10 to 14 |")
    lines = page(folder, '{{ intervals("study") }}')
    assert lines[0] == (
        "| variant | Acc_e, % | Acc_g, % | Acc_ir, % | H, % | H, seed 0, % | H, seed 4, % |"
    )
    assert lines[2].startswith("| 10 | 20.0 [11.8, 31.8] |")
    assert lines[2].endswith("| 80.0 | 100.0 | 60.0 |")


def test_other_tables(folder: Path):
    lines = page(folder, '{{ attacks("attacks") }}')
    assert lines[0] == "| change of the prompt | entity, % | style, % | relation, % | all, % |"
    assert lines[2].startswith("| misspelt | 90.0 / 50.0 / 20.0 | 90.0")
    assert "90.0 / 50.0 / 20.0 [" in lines[2]
    lines = page(folder, '{{ speed("speed") }}')
    assert lines[2:4] == [
        "| 1 | 20.0 | 10.0 | 10.00 | 1.0 | 115 |",
        "| 5 | 20.0 | 10.0 | 2.00 | 5.0 | 23 |",
    ]
    lines = page(folder, '{{ compositions("composed") }}')
    assert lines[0] == ("| concepts | method | strength | Acc_e, % | Acc_g, % | Acc_ir, % | H, % |")
    assert lines[3].startswith("| 3 | sum | 0.50 | 30.0 [")
    assert "| 90.0 → 70.0 [" in lines[3]
    lines = page(folder, '{{ composed_kinds("composed", "2") }}')
    assert lines[0] == "| method | entity, % | style, % | relation, % |"
    assert lines[2].startswith("| sum | 20.0 / 20.0 / 80.0 | 20.0 /")
    assert page(folder, '{{ swaps("swapped") }}')[2] == "| none | 90.0 / 10.0 |"


def test_tables_of_methods(folder: Path):
    base, *lines = page(folder, '{{ methods("compared") }}')[2:]
    assert base.startswith("| base model | 90.0 | 90.0 | 90.0 | 14.2 | – |")
    assert [line.split(" | ")[0] for line in lines] == ["| Better", "| Silent", "| Worse"]
    assert lines[0] == (
        "| Better | 10.0 [5.0, 95.0] | 10.0 [5.0, 95.0] | 90.0 [5.0, 95.0] | 90.0 [5.0, 95.0] "
        "| 10.0 [5.0, 95.0] | 1.50 [1.25, 1.75] | 12,345 | 50 | 2.3 | 8 |"
    )
    assert lines[1].endswith("| 1.50 [1.25, 1.75] | – | – | – | – |")
    # Each other method has its difference to EraseAnything.
    heading, _, base, ours, other = page(folder, '{{ methods("beside") }}')
    assert "| H, % | H − EraseAnything's H, points | attacks, % |" in heading
    assert {line.count("|") for line in (heading, base, ours, other)} == {13}
    assert "| 90.0 [5.0, 95.0] | – | 10.0 [" in ours
    assert "| 60.0 [5.0, 95.0] | -30.0 [-30.0, -30.0] | 40.0 [" in other
    assert page(folder, '{{ full_size("full_size") }}')[2:] == [
        "| One | 20 | 0.123 | 30.6 | 1,000,000 | 100 |",
        "| Closed | – | – | – | 10 | 5 |",
        "| Large | out of memory | – | – | – | – |",
    ]
    assert page(folder, '{{ relearning("relearnt") }}') == [
        "| method | 0 steps, % | 10 steps, % |",
        "| --- | ---: | ---: |",
        "| A | 20.0 / 80.0 | 0.0 / 100.0 |",
    ]


@pytest.mark.slow
def test_figures_lie_beside_the_numbers(folder: Path):
    lines = page(
        folder,
        '{{ curve("study", "a curve", "iterations") }}\n{{ bars("attacks", "bars") }}\n'
        '{% if "nothing" in here %}{{ dots("nothing", "") }}{% endif %}',
    )
    assert lines[:2] == ["![a curve](docs/numbers/study.png)", "![bars](docs/numbers/attacks.png)"]
    page(folder, '{{ compared("compared", "methods") }}')
    rendered = {
        "study": figures.curve(read_numbers(folder, "study"), "iterations"),
        "attacks": figures.attack_bars(read_numbers(folder, "attacks")),
        "compared": figures.methods(read_numbers(folder, "compared")),
    }
    for name, figure in rendered.items():
        figure.savefig(buffer := io.BytesIO(), dpi=150)
        with Image.open(folder / f"{name}.png") as written, Image.open(buffer) as expected:
            np.testing.assert_array_equal(np.asarray(written), np.asarray(expected))


def test_a_curve_has_a_line_for_each_kind_and_cell(folder: Path):
    study = read_numbers(folder, "study")
    figure = figures.curve(study, "iterations")
    (axis,) = figure.axes
    assert axis.get_xlabel() == "iterations"
    lines = {str(line.get_label()): line for line in axis.lines}
    assert set(lines) == {f"{kind} {cell}" for kind in KINDS.values() for cell in CELLS}
    for kind in KINDS.values():
        for cell in CELLS:
            rows = [
                [row["cells"][cell]["after"] for row in variant["rows"] if row["kind"] == kind]
                for variant in study["variants"].values()
            ]
            after = [
                100 * sum(v["found"] for v in each) / sum(v["of"] for v in each) for each in rows
            ]
            x, y = lines[f"{kind} {cell}"].get_data()
            np.testing.assert_allclose(x, [0, *map(float, study["variants"])])
            np.testing.assert_allclose(y, [90, *after])


def test_dots_and_bars_stand_at_the_shares(folder: Path):
    study = read_numbers(folder, "study")
    axes = figures.dots(study).axes
    assert [axis.get_title() for axis in axes] == list(KINDS.values())
    assert [text.get_text() for text in axes[0].get_yticklabels()] == list(study["variants"])
    for axis in axes:
        assert axis.get_legend_handles_labels()[1] == list(CELLS)
        lines = [bars.lines[0] for bars in axis.containers if isinstance(bars, ErrorbarContainer)]
        for cell, line in zip(CELLS, lines, strict=True):
            assert line is not None
            wanted = [
                cells_of(
                    pooled(r["cells"] for r in variant["rows"] if r["kind"] == axis.get_title())
                )[cell]
                for variant in study["variants"].values()
            ]
            shares = [100 * each["after"]["share"] for each in wanted]
            np.testing.assert_allclose(np.asarray(line.get_xdata(), float), shares)
    (axis,) = figures.attack_bars(attacks := read_numbers(folder, "attacks")).axes
    sides = [attacks["all"]["misspelt"][side] for side in ("before", "silenced", "after")]
    heights = [patch.get_height() for patch in axis.patches]
    np.testing.assert_allclose(heights, [100 * side["share"] for side in sides])
    assert axis.get_legend_handles_labels()[1] == ["base model", "attention map erasure", "adapter"]


def test_compositions_and_methods_stand_at_their_shares(folder: Path):
    axes = figures.composed(read_numbers(folder, "composed")).axes
    titles = [axis.get_title().partition(" (") for axis in axes]
    assert [title[0] for title in titles] == ["Acc_e", "Acc_ir", "H"]
    assert [title[2].split()[0] for title in titles] == ["lower", "higher", "higher"]
    counts = read_numbers(folder, "composed")["counts"]
    for axis, title in zip(axes[:2], titles, strict=False):
        (line,) = axis.lines
        cells = [methods["sum"]["all"][title[0]] for methods in counts.values()]
        np.testing.assert_allclose(line.get_xdata(), [2, 3])
        np.testing.assert_allclose(line.get_ydata(), [100 * c["after"]["share"] for c in cells])
        assert line.get_label() == "sum"
    (axis,) = figures.methods(read_numbers(folder, "compared")).axes
    labels = axis.get_legend_handles_labels()[1]
    assert labels == ["Better, 10.0 %", "Silent, 20.0 %", "Worse, 40.0 %", "base model"]
    places = [c.get_offsets()[0] for c in axis.collections if isinstance(c, PathCollection)]
    np.testing.assert_allclose(places, [(10, 90), (20, 80), (40, 60)])


def test_every_axis_has_a_title_with_its_unit(folder: Path):
    study, numbers = read_numbers(folder, "study"), functools.partial(read_numbers, folder)
    plots = {
        "iterations": figures.curve(study, "iterations"),
        "share of pictures, %": figures.dots(study),
        "concepts in one adapter (log scale)": figures.composed(numbers("composed")),
        "change of the prompt": figures.attack_bars(numbers("attacks")),
        "Acc_e: erased concept detected, % of pictures (lower is better)": figures.methods(
            numbers("compared")
        ),
    }
    for title, figure in plots.items():
        assert {axis.get_xlabel() for axis in figure.axes} == {title}
        # Rows of dots have names in the place of a title.
        if title != "share of pictures, %":
            assert all("%" in axis.get_ylabel() for axis in figure.axes)
        assert all(("log" in title) == (axis.get_xscale() == "log") for axis in figure.axes)


def test_labels_are_of_names_in_the_numbers():
    texts = [path.read_text() for path in (ROOT / "docs" / "results").glob("*.json")]
    for name, label in labels.LABELS.items():
        assert any(json.dumps(name) in text for text in texts), name
        assert labels.label(name) == label
    assert len(set(labels.LABELS.values())) == len(labels.LABELS)
    assert labels.label("rank 4") == "rank 4"


def test_axes_are_a_table_and_a_chart_that_reaches_the_largest_value(folder: Path):
    lines = page(folder, '{{ measured_axes("axes") }}')
    assert lines[0].startswith("| method | Erasing, % | Preservation, % | Clean pictures, % |")
    shares = " | ".join(["50.0 [25.0, 75.0]"] * 4)
    assert lines[2:] == [f"| base | {shares} | 100.0 |", f"| MACE | {shares} | 112.5 |"]
    (plot,) = figures.axes(read_numbers(folder, "axes")).axes
    assert plot.get_ylim() == (0, 112.5)
    assert [list(line.get_ydata()) for line in plot.lines] == [
        [50, 50, 50, 50, 100, 50],
        [50, 50, 50, 50, 112.5, 50],
    ]
    assert "not by people" in plot.get_title()


def test_missing_numbers_are_named(folder: Path):
    with pytest.raises(InputError, match=r"losses\.json is missing: the page's text asks for it"):
        page(folder, '{{ variants("losses") }}')
    with pytest.raises(InputError, match=r"results = 'nowhere' has no results\.md\.j2"):
        draw(Path("nowhere"), Path("PAGE.md"))


def test_the_page_shows_the_newcomers_once_they_are_counted(folder: Path):
    text = (ROOT / "docs" / "results" / results.TEMPLATE).read_text()
    start = text.index('{% if "newcomer" in here %}')
    section = text[start : text.index("{% endif %}", start) + len("{% endif %}")]
    assert page(folder, section) == [""]
    shutil.copy(folder / "all.json", folder / "newcomer.json")
    lines = page(folder, section)
    assert "    python -m erase.train --config configs/emoji_newcomer.py --workdir RUN \\" in lines
    assert any(line.startswith("| all | 3 | 90.0 → 10.0 [") for line in lines)
    assert "| flat | style | 90.0 → 10.0 | 90.0 → 10.0 | 90.0 → 90.0 |" in lines


@pytest.mark.slow
def test_the_committed_page_shows_the_committed_numbers(tmp_path: Path):
    shutil.copytree(ROOT / "docs" / "results", tmp_path / "docs" / "results")
    draw(tmp_path / "docs" / "results", tmp_path / "RESULTS.md")
    assert (tmp_path / "RESULTS.md").read_text() == (ROOT / "RESULTS.md").read_text()
