"""Draws RESULTS.md: the numbers in docs/results as tables and figures, in the text around them.

    python -m erase.results

The text is docs/results/results.md.j2, in which a table is asked for by its name. Tables give
percent; a range in brackets is Wilson's at 95 %. The figures lie beside the numbers.
"""

import functools
import io
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from absl import app, flags
from matplotlib.figure import Figure

from convert.errors import InputError, exits_cleanly
from erase.command import begin, parse_flags
from erase.judge import share
from erase.pictures import write
from erase.summary import CELLS, SIDES, pooled

TEMPLATE = "results.md.j2"
KINDS = {"entity": "#0f766e", "style": "#b45309", "relation": "#6d28d9"}
LINES = {"Acc_e": "-", "Acc_g": ":", "Acc_ir": "--"}
# Of a run of configs/emoji_all.py.
ITERATIONS = 300
MARKERS = {"Acc_e": "o", "Acc_g": "x", "Acc_ir": "D"}


def draw(folder: Path, out: Path) -> None:
    """Writes the page and its figures.

    Args:
        folder: where the numbers and the text are; figures are put there.
        out: the page.

    Raises:
        InputError: the text, or numbers that it asks for, are not there.
    """
    tables: Mapping[str, Callable[..., str]] = {
        "kinds": kinds_table,
        "runs": runs_table,
        "apart": apart_table,
        "variants": variants_table,
        "intervals": intervals_table,
        "attacks": attacks_table,
        "speed": speed_table,
        "swaps": swaps_table,
        "compositions": compositions_table,
        "composed_kinds": composed_kinds_table,
    }
    figures: Mapping[str, Callable[..., Figure]] = {
        "curve": curve,
        "dots": dots,
        "bars": attack_bars,
        "composed": composed,
    }

    def table(drawn: Callable[..., str], name: str, *more: Any) -> str:
        return drawn(read(folder, name), *more)

    def picture(figure: Callable[..., Figure], name: str, alt: str, *more: Any) -> str:
        path = folder / f"{name}.png"
        buffer = io.BytesIO()
        figure(read(folder, name), *more).savefig(buffer, dpi=150, metadata={"Software": None})
        write(path, buffer.getvalue())
        return f"![{alt}]({os.path.relpath(path, out.parent)})"

    if not (folder / TEMPLATE).is_file():
        raise InputError(f"results = {str(folder)!r} has no {TEMPLATE}; check the path")
    text = (folder / TEMPLATE).read_text()
    # Markdown of this project's own numbers.
    environment = jinja2.Environment(  # nosec B701
        undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    page = environment.from_string(text)
    asked = {name: functools.partial(table, drawn) for name, drawn in tables.items()}
    shown = {name: functools.partial(picture, figure) for name, figure in figures.items()}
    here = [path.stem for path in folder.glob("*.json")]
    write(out, page.render(**asked, **shown, here=here) + "\n")


def read(folder: Path, name: str) -> dict[str, Any]:
    """The numbers of a name.

    Raises:
        InputError: they are not there.
    """
    path = folder / f"{name}.json"
    if not path.is_file():
        raise InputError(f"{path} is missing: the page's text asks for it")
    return json.loads(path.read_text())


def markdown(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table, its first column to the left, the others to the right."""
    lines = [headings, ["---", *["---:"] * (len(headings) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def percent(value: Mapping[str, float] | float) -> str:
    """A share, or a count with its share, in percent."""
    return f"{100 * (value['share'] if isinstance(value, Mapping) else value):.1f}"


def interval(value: Mapping[str, float]) -> str:
    """A share in percent with its interval."""
    return f"{percent(value)} [{percent(value['low'])}, {percent(value['high'])}]"


def kinds_table(summary: Mapping[str, Any]) -> str:
    """The paper's Table 3: a line for each kind, and for all; before → after."""
    rows = []
    for kind, cells in _groups(summary).items():
        shares = [f"{percent(cells[c]['before'])} → {interval(cells[c]['after'])}" for c in CELLS]
        sides = cells["H"]
        h = f"{percent(sides['before'])} → {percent(sides['after'])}"
        rows.append([kind, str(cells["concepts"]), *shares, h])
    return markdown(["", "concepts", *CELLS, "H"], rows)


def runs_table(summary: Mapping[str, Any]) -> str:
    """A line for each concept; before → after."""
    rows = []
    for run in sorted(summary["runs"].values(), key=lambda run: list(KINDS).index(run["kind"])):
        sides = [[run["cells"][c][side] for side in ("before", "after")] for c in CELLS]
        rows.append(
            [run["concept"], run["kind"], *(" → ".join(map(percent, pair)) for pair in sides)]
        )
    return markdown(["erased", "kind", *CELLS], rows)


def apart_table(summary: Mapping[str, Any], apart: Mapping[str, str]) -> str:
    """What is kept, with and without one other concept of each run, such as a relation's converse.

    Args:
        summary: of runs whose counts by other concept are there.
        apart: that other concept, by the erased one.
    """
    kept, lost, rest = [], [], []
    for run in summary["runs"].values():
        if run["concept"] in apart:
            rows = run["concepts"]
            kept += rows
            lost += [row for row in rows if row["concept"] == apart[run["concept"]]]
            rest += [row for row in rows if row["concept"] != apart[run["concept"]]]
    names = {"all others": kept, "the one": lost, "the rest": rest}
    lines = []
    for name, rows in names.items():
        of = sum(row["of"] for row in rows)
        before, after = (share(sum(row[side] for row in rows), of) for side in SIDES)
        lines.append([name, str(of), percent(before), interval(after)])
    return markdown(["found among", "pictures", "before", "after"], lines)


def variants_table(study: Mapping[str, Any]) -> str:
    """A line for each variant of a study, after erasing; a triple of cells for each kind."""
    kinds = list(dict.fromkeys(row["kind"] for row in _first(study)["rows"]))
    rows = [["base", *(_triple(_sums(_first(study), kind), "before") for kind in (*kinds, None))]]
    for name, variant in study["variants"].items():
        sums = [_sums(variant, kind) for kind in (*kinds, None)]
        took = [row["iterations"] for row in variant["rows"]]
        rows.append(
            [name, *(_triple(each, "after") for each in sums), f"{min(took)} to {max(took)}"]
        )
    rows[0].append("")
    headings = ["", *(f"{kind} {' / '.join(CELLS)} / H" for kind in kinds), "all", "iterations"]
    return markdown(headings, rows)


def intervals_table(study: Mapping[str, Any]) -> str:
    """A line for each variant over all concepts, with intervals, and H of each of several seeds."""
    rows, several = [], study["seeds"] if len(study["seeds"]) > 1 else []
    for name, variant in study["variants"].items():
        cells = _sums(variant)
        row = [
            name,
            *(interval(cells[cell]["after"]) for cell in CELLS),
            percent(cells["H"]["after"]),
        ]
        for seed in several:
            own = pooled(each["cells"] for each in variant["rows"] if each["seed"] == seed)
            row.append(percent(own["H"]["after"]))
        rows.append(row)
    seeds = [f"H, seed {seed}" for seed in several]
    return markdown(["", *CELLS, "H", *seeds], rows)


def attacks_table(summary: Mapping[str, Any]) -> str:
    """A line for each family of attacks: base / silenced / adapter, for each kind and for all."""
    groups = _groups(summary)
    rows = []
    for family in [name for name in summary["all"] if name != "concepts"]:
        texts = []
        for group in groups.values():
            sides = group.get(family, {})
            shares = [percent(sides[side]) for side in sides if side != "after"]
            shown = interval if group is summary["all"] else percent
            texts.append(" / ".join([*shares, shown(sides["after"])]) if sides else "–")
        rows.append([family, *texts])
    return markdown(["", *groups], rows)


def speed_table(speed: Mapping[str, Any]) -> str:
    """A line for each number of concepts that train at once, and how long all would take so."""
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
    headings = ["concepts at once", "compiling, s", "iteration, ms", "ms a concept", "times faster"]
    return markdown([*headings, all_of_them], rows)


def swaps_table(result: Mapping[str, Any]) -> str:
    """A line for each swap of tokens: drawn as the relation / as its converse."""
    relations = result["relations"]
    rows = []
    for swap in next(iter(relations.values())):
        sides = [relations[name][swap] for name in relations]
        rows.append([swap, *(f"{percent(s['own'])} / {percent(s['converse'])}" for s in sides)])
    return markdown(["taken from the converse", *relations], rows)


def compositions_table(result: Mapping[str, Any]) -> str:
    """A line for each number of concepts and method."""
    rows = []
    for count, methods in result["counts"].items():
        for name, found in methods.items():
            cells = found["all"]
            kept = f"{percent(cells['Acc_ir']['before'])} → {interval(cells['Acc_ir']['after'])}"
            erased = (interval(cells[cell]["after"]) for cell in ("Acc_e", "Acc_g"))
            h = percent(cells["H"]["after"])
            rows.append([count, name, f"{found['strength']:.2f}", *erased, kept, h])
    return markdown(["concepts", "made by", "strength", *CELLS, "H"], rows)


def composed_kinds_table(result: Mapping[str, Any], count: str) -> str:
    """A line for each method of a number of concepts, by kind: Acc_e / Acc_g / Acc_ir."""
    rows = []
    for name, found in result["counts"][count].items():
        cells = found["kinds"].values()
        texts = [" / ".join(percent(each[cell]["after"]) for cell in CELLS) for each in cells]
        rows.append([name, *texts])
    return markdown(["made by", *result["counts"][count]["sum"]["kinds"]], rows)


def composed(result: Mapping[str, Any]) -> Figure:
    """Cells and H against the number of concepts in one adapter, a line for each method."""
    counts = result["counts"]
    numbers = [int(count) for count in counts]
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    axes = figure.subplots(1, 3, sharey=True)
    for axis, cell in zip(axes, ("Acc_e", "Acc_ir", "H"), strict=True):
        for number, name in enumerate(next(iter(counts.values()))):
            values = [methods[name]["all"][cell]["after"] for methods in counts.values()]
            heights = [100 * (v if cell == "H" else v["share"]) for v in values]
            axis.plot(numbers, heights, "o-", ms=4, color=f"C{number}", label=name)
        axis.set(title=cell, xlabel="concepts in one adapter", xscale="log", ylim=(-3, 103))
        axis.set_xticks(numbers, counts)
        axis.minorticks_off()
    axes[0].set_ylabel("%")
    labels = axes[0].get_legend_handles_labels()
    figure.legend(*labels, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    return _plain(figure)


def curve(study: Mapping[str, Any], along: str) -> Figure:
    """Shares against a number that names the study's variants; the base is at 0.

    Args:
        study: its numbers.
        along: what the number is.
    """
    figure = Figure(figsize=(7.5, 4), layout="constrained")
    axis = figure.subplots()
    steps = [0.0, *map(float, study["variants"])]
    for kind, colour in KINDS.items():
        sums = [_sums(variant, kind) for variant in study["variants"].values()]
        for cell, line in LINES.items():
            shares = [sums[0][cell]["before"]["share"], *(s[cell]["after"]["share"] for s in sums)]
            axis.plot(steps, [100 * s for s in shares], line, color=colour, label=f"{kind} {cell}")
    axis.set(xlabel=along, ylabel="pictures in which it is found, %", ylim=(-2, 102))
    axis.legend(ncols=3, frameon=False, fontsize=8, loc="center right")
    return _plain(figure)


def dots(study: Mapping[str, Any]) -> Figure:
    """A line for each variant, a panel for each kind: every cell with its interval."""
    names = list(study["variants"])
    figure = Figure(figsize=(10, 1.1 + 0.28 * len(names)), layout="constrained")
    axes = figure.subplots(1, len(KINDS), sharey=True)
    for axis, (kind, colour) in zip(axes, KINDS.items(), strict=True):
        sums = [_sums(variant, kind) for variant in study["variants"].values()]
        for place, (cell, marker) in enumerate(MARKERS.items()):
            values = [each[cell]["after"] for each in sums]
            at = [index + 0.2 * (place - 1) for index in range(len(names))]
            shares = [100 * v["share"] for v in values]
            errors = _errors(values)
            axis.errorbar(shares, at, xerr=errors, fmt=marker, color=colour, ms=4, lw=1, label=cell)
        axis.set(title=kind, xlabel="%", xlim=(-3, 103))
    axes[0].set_yticks(range(len(names)), names)
    axes[0].invert_yaxis()
    labels = axes[0].get_legend_handles_labels()
    figure.legend(*labels, loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    return _plain(figure)


def attack_bars(summary: Mapping[str, Any]) -> Figure:
    """Share of attacks that succeed on the base, with the concept silenced, with the adapter."""
    families = [name for name in summary["all"] if name != "concepts"]
    figure = Figure(figsize=(7.5, 3), layout="constrained")
    axis = figure.subplots()
    sides = {
        "before": ("base", "#cbd5e1"),
        "silenced": ("attention map erasure", "#b45309"),
        "after": ("adapter", "#0f766e"),
    }
    for place, (side, (label, colour)) in enumerate(sides.items()):
        values = [summary["all"][family][side] for family in families]
        at = [index + 0.27 * (place - 1) for index in range(len(families))]
        heights = [100 * v["share"] for v in values]
        axis.bar(at, heights, 0.25, yerr=_errors(values), color=colour, label=label, capsize=2)
    axis.set_xticks(range(len(families)), families)
    axis.set_ylabel("attacks that succeed, %")
    figure.legend(loc="outside upper center", ncols=3, frameon=False, fontsize=8)
    return _plain(figure)


def _errors(values: Sequence[Mapping[str, float]]) -> list[list[float]]:
    """How far intervals reach below and above their shares, in percent."""
    below = [100 * (value["share"] - value["low"]) for value in values]
    return [below, [100 * (value["high"] - value["share"]) for value in values]]


def _plain(figure: Figure) -> Figure:
    for axis in figure.axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(color="#eceff3", linewidth=0.8)
        axis.set_axisbelow(True)
    return figure


def _groups(summary: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """What is summed over each kind, in their order here, and over all."""
    kinds = summary["kinds"]
    return {**{kind: kinds[kind] for kind in KINDS if kind in kinds}, "all": summary["all"]}


def _first(study: Mapping[str, Any]) -> Mapping[str, Any]:
    return next(iter(study["variants"].values()))


def _sums(variant: Mapping[str, Any], kind: str | None = None) -> dict[str, Any]:
    """A variant's cells over all of its runs, or those of a kind."""
    return pooled(row["cells"] for row in variant["rows"] if kind in (None, row["kind"]))


def _triple(sums: Mapping[str, Any], side: str) -> str:
    return " / ".join(percent(sums[cell][side]) for cell in (*CELLS, "H"))


@exits_cleanly
def main(argv: Sequence[str]) -> None:
    """The command; see the module's docstring."""
    begin(argv)
    draw(Path(flags.FLAGS.results), Path(flags.FLAGS.out))


if __name__ == "__main__":
    flags.DEFINE_string("results", "docs/results", "Folder of the numbers and of the text.")
    flags.DEFINE_string("out", "RESULTS.md", "The page.")
    app.run(main, flags_parser=parse_flags)
