"""Tables of results in Markdown, from the numbers in docs/results.

Shares are in percent, with 95 % intervals in brackets: Wilson's, or in comparisons of methods the
bootstrap's over concepts.
"""

import re
from collections.abc import Mapping

from benchmarks.results.labels import label
from benchmarks.results.schemas import (
    CompositionsResult,
    ConcurrencyResult,
    FullSizeResult,
    RelationsResult,
    RelearningResult,
    StudyResult,
    Variant,
)
from erase.evaluation.percent import number
from erase.evaluation.statistics import CELLS, SIDES, cells_of, pooled, wilson_interval
from erase.report.plain_text import markdown as markdown_text
from erase.report.tables import (
    BASE,
    NOTHING,
    cell_side,
    interval,
    markdown,
    percent_headings,
    shown_share,
)
from erase.runtime.results import Side, Summary, Sums
from erase.survey.axes import AXES, AxesResult, axis_cell

# In the order of tables.
KINDS = ("entity", "style", "relation")


# Of a run of configs/emoji_all.py; `speed` shows how long so many take.
ITERATIONS = 300


def named(name: str) -> str:
    """The label of a variant or method in Markdown."""
    # Underscores within words mean nothing there.
    return re.sub(r"(?<=\w)\\_(?=\w)", "_", markdown_text(label(name)))


def kinds(summary: Summary) -> str:
    """The paper's Table 3: a row for each kind and one for all; before → after."""
    rows = []
    for kind, sums_of_kind in _groups(summary).items():
        counted = cells_of(sums_of_kind)
        pairs = [[counted.get(cell, {}).get(side) for side in SIDES] for cell in CELLS]
        shares = [f"{shown_share(before)} → {interval(after)}" for before, after in pairs]
        h = " → ".join(shown_share(cell_side(sums_of_kind, "H", side)) for side in SIDES)
        rows.append([named(kind), str(sums_of_kind.get("concepts")), *shares, h])
    return markdown(["kind", "concepts", *percent_headings(*CELLS, "H")], rows)


def runs(summary: Summary) -> str:
    """A row for each concept; before → after."""
    rows = []
    for run in sorted(summary["runs"].values(), key=lambda run: KINDS.index(run["kind"])):
        # A concept without synonyms has no Acc_g.
        sides = [run["cells"].get(cell, {}) for cell in CELLS]
        shares = [" → ".join(number(side[s]) for s in SIDES) if side else NOTHING for side in sides]
        rows.append([named(run["concept"]), named(run["kind"]), *shares])
    return markdown(["erased concept", "kind", *percent_headings(*CELLS)], rows)


def apart(summary: Summary, apart: Mapping[str, str]) -> str:
    """Acc_ir with and without one other concept of each run, such as a relation's converse.

    Args:
        summary: of runs with counts for each other concept.
        apart: that other concept, by the erased one.
    """
    others, excepted, rest = [], [], []
    for run in summary["runs"].values():
        if run["concept"] in apart:
            rows = run.get("concepts", [])
            others += rows
            excepted += [row for row in rows if row["concept"] == apart[run["concept"]]]
            rest += [row for row in rows if row["concept"] != apart[run["concept"]]]
    names = {"all": others, "the converse": excepted, "the rest": rest}
    lines = []
    for name, rows in names.items():
        of = sum(row["of"] for row in rows)
        before, after = (wilson_interval(sum(row[side] for row in rows), of) for side in SIDES)
        lines.append([name, str(of), number(before), interval(after)])
    return markdown(["other concepts", "pictures", *percent_headings("before", "after")], lines)


def variants(study: StudyResult) -> str:
    """A row for each variant of a study after erasing: cells and H of each kind."""
    kinds = list(dict.fromkeys(row["kind"] for row in _first(study)["rows"]))
    rows = [[BASE, *(_triple(sums(_first(study), kind), "before") for kind in (*kinds, None))]]
    for name, variant in study["variants"].items():
        every = [sums(variant, kind) for kind in (*kinds, None)]
        counts = [row.get("iterations", 0) for row in variant["rows"]]
        rows.append(
            [
                named(name),
                *(_triple(each, "after") for each in every),
                _range(min(counts), max(counts)),
            ]
        )
    rows[0].append("")
    groups = percent_headings(*(f"{group}: {' / '.join(CELLS)} / H" for group in (*kinds, "all")))
    return markdown(["variant", *groups, "iterations"], rows)


def intervals(study: StudyResult) -> str:
    """A row for each variant over all concepts, with intervals, and H of each of several seeds."""
    rows, several = [], study["seeds"] if len(study["seeds"]) > 1 else []
    for name, variant in study["variants"].items():
        cells = sums(variant)
        row = [
            named(name),
            *(interval(cells.get(cell, {}).get("after")) for cell in CELLS),
            shown_share(cell_side(cells, "H", "after")),
        ]
        for seed in several:
            of_seed = pooled(each["cells"] for each in variant["rows"] if each["seed"] == seed)
            row.append(shown_share(cell_side(of_seed, "H", "after")))
        rows.append(row)
    seeds = [f"H, seed {seed}" for seed in several]
    return markdown(["variant", *percent_headings(*CELLS, "H", *seeds)], rows)


def attacks(summary: Summary) -> str:
    """A row for each family of attacks: base / silenced / adapter, for each kind and for all."""
    groups = _groups(summary)
    rows = []
    for family in cells_of(summary["all"]):
        texts = []
        for group in groups.values():
            sides = cells_of(group).get(family, {})
            shares = [number(sides[side]) for side in sides if side != "after"]
            as_text = interval if group is summary["all"] else number
            texts.append(" / ".join([*shares, as_text(sides["after"])]) if sides else NOTHING)
        rows.append([named(family), *texts])
    return markdown(["change of the prompt", *percent_headings(*groups)], rows)


def speed(speed: ConcurrencyResult) -> str:
    """A row for each number of concepts that train at once, and how long all of them take."""
    alone, most = speed["runs"][0], speed["runs"][-1]["concepts"]
    rows = []
    for run in speed["runs"]:
        each = run["iteration_ms"] / run["concepts"]
        whole = run["compile_s"] + ITERATIONS * run["iteration_ms"] / 1000
        rows.append(
            [
                str(run["concepts"]),
                f"{run['compile_s']:.1f}",
                f"{run['iteration_ms']:.1f}",
                f"{each:.2f}",
                f"{alone['iteration_ms'] / each:.1f}",
                f"{whole * most / run['concepts']:.0f}",
            ]
        )
    all_of_them = f"{most} concepts, {ITERATIONS} iterations, s"
    headings = [
        "concepts at once",
        "compilation, s",
        "iteration, ms",
        "per concept, ms",
        "speed-up",
    ]
    return markdown([*headings, all_of_them], rows)


def swaps(result: RelationsResult) -> str:
    """A row for each swap of tokens: pictures with the relation / with its converse."""
    relations = result["relations"]
    rows = []
    for swap in next(iter(relations.values())):
        sides = [relations[name][swap] for name in relations]
        rows.append(
            [named(swap), *(f"{number(s['own'])} / {number(s['converse'])}" for s in sides)]
        )
    return markdown(["tokens of the converse", *percent_headings(*relations)], rows)


def compositions(result: CompositionsResult) -> str:
    """A row for each number of concepts and method."""
    rows = []
    for count, methods in result["counts"].items():
        for name, composition in methods.items():
            cells = cells_of(composition["all"])
            others = cells.get("Acc_ir", {})
            before, after = shown_share(others.get("before")), interval(others.get("after"))
            erased = [interval(cells.get(cell, {}).get("after")) for cell in ("Acc_e", "Acc_g")]
            h = shown_share(cell_side(composition["all"], "H", "after"))
            strength = f"{composition['strength']:.2f}"
            rows.append([named(count), named(name), strength, *erased, f"{before} → {after}", h])
    return markdown(["concepts", "method", "strength", *percent_headings(*CELLS, "H")], rows)


def full_size(result: FullSizeResult) -> str:
    """A row for each method that was run at full size."""
    rows = []
    for each in result["methods"].values():
        if "error" in each:
            rows.append([named(each["title"]), named(each["error"]), *[NOTHING] * 4])
            continue
        updates, update = each.get("updates"), each.get("update_s")
        memory = each.get("memory")
        rows.append(
            [
                named(each["title"]),
                str(updates) if updates else NOTHING,
                NOTHING if update is None else f"{update:.3f}",
                f"{memory / 1e9:.1f}" if memory else NOTHING,
                f"{each.get('parameters', 0):,}",
                f"{each.get('whole_s', 0):.0f}",
            ]
        )
    headings = ["updates", "per update, s", "peak memory, GB", "parameters", "whole command, s"]
    return markdown(["method", *headings], rows)


def relearning(result: RelearningResult) -> str:
    """A row for each method: Acc_e / Acc_ir after each number of relearning steps."""
    steps = [str(count) for count in result["stops"]]
    rows = []
    for each in result["methods"].values():
        every = [pooled(row["cells"] for row in each["steps"][count]) for count in steps]
        shares = [
            [shown_share(cell_side(cells, cell, "after")) for cell in ("Acc_e", "Acc_ir")]
            for cells in every
        ]
        rows.append([named(each["title"]), *(" / ".join(pair) for pair in shares)])
    return markdown(["method", *percent_headings(*(f"{count} steps" for count in steps))], rows)


def composed_kinds(result: CompositionsResult, count: str) -> str:
    """A row for each method of a number of concepts, by kind: Acc_e / Acc_g / Acc_ir."""
    rows = []
    for name, composition in result["counts"][count].items():
        texts = [
            " / ".join(shown_share(cells.get(cell, {}).get("after")) for cell in CELLS)
            for cells in composition["kinds"].values()
        ]
        rows.append([named(name), *texts])
    return markdown(["method", *percent_headings(*result["counts"][count]["sum"]["kinds"])], rows)


def _groups(summary: Summary) -> dict[str, Sums]:
    """Sums over each kind, in the order of `KINDS`, and over all."""
    kinds = summary["kinds"]
    return {**{kind: kinds[kind] for kind in KINDS if kind in kinds}, "all": summary["all"]}


def _first(study: StudyResult) -> Variant:
    return next(iter(study["variants"].values()))


def sums(variant: Variant, kind: str | None = None) -> Sums:
    """A variant's cells over all of its runs, or those of a kind."""
    return pooled(row["cells"] for row in variant["rows"] if kind in (None, row["kind"]))


def _triple(cells: Sums, side: Side) -> str:
    return " / ".join(shown_share(cell_side(cells, cell, side)) for cell in (*CELLS, "H"))


def _range(low: int, high: int) -> str:
    return str(low) if low == high else f"{low} to {high}"


def axes(result: AxesResult) -> str:
    """The user study's five axes as a judge measured them: a row for each method."""
    rows = [
        [markdown_text(method), *(axis_cell(values[axis]) for axis in AXES)]
        for method, values in result["methods"].items()
    ]
    return markdown(["method", *AXES.values()], rows)
