"""One table of the results of benchmarks, with the paper's figures, in Markdown, LaTeX and HTML."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from typing_extensions import TypedDict

from erase.benchmark.results import TABLE_STEM, BenchmarkResult, FigureRecord
from erase.evaluation.percent import csv_cell
from erase.report import tables
from erase.report.plain_text import markdown, one_line, page_environment
from erase.runtime.files import write
from flux_jax.errors import InputError, counted, nearest, shortened
from flux_jax.system.json_files import read_typed

PAPER = Path(__file__).with_name("paper.json")
MARK = "paper's"
CSV_HEADINGS = (
    *("prompts", "model", "row", "judge", "group", "figure", "unit"),
    *("value", "low", "high", "pictures"),
)
LATEX = {
    **{letter: f"\\{letter}" for letter in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
}
PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Benchmarks</title>
<style>
body { font: 15px sans-serif; margin: 2em } table { border-collapse: collapse }
td, th { border: 1px solid #ccc; padding: .3em .6em; text-align: right }
td:first-child, th:first-child { text-align: left } .paper { color: #666 }
</style>
<table><tr>{% for each in table.headings %}<th>{{ each }}</th>{% endfor %}</tr>
{% for row in table.rows -%}
<tr{% if row.paper %} class="paper"{% endif %}>
{%- for cell in row.cells %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</table>
<ul>{% for line in table.notes %}<li>{{ line }}</li>
{% endfor %}</ul></html>
"""


class _Column(TypedDict):
    judge: str
    name: str
    unit: str


class _PaperRow(TypedDict):
    title: str
    values: list[float]


class _PaperTable(TypedDict):
    about: str
    columns: list[_Column]
    rows: list[_PaperRow]


class Paper(TypedDict):
    """The paper's figures, in `paper.json`."""

    source: str
    tables: dict[str, _PaperTable]


@dataclass(frozen=True)
class Column:
    """What a column of the joined table is about.

    Attributes:
        judge: name of the judge.
        name: name of the figure.
        unit: its unit.
        group: group of the prompt set; empty for all pictures.
    """

    judge: str
    name: str
    unit: str
    group: str = ""

    @property
    def heading(self) -> str:
        """Heading of the column."""
        of = f" ({self.group})" if self.group else ""
        return f"{self.judge}: {self.name}{of}{f', {self.unit}' if self.unit else ''}"


@dataclass(frozen=True)
class TableRow:
    """A row of the joined table.

    Attributes:
        title: its first cell.
        figures: by column.
        paper: whether these are the paper's.
    """

    title: str
    figures: dict[Column, FigureRecord] = field(default_factory=dict)
    paper: bool = False


@dataclass(frozen=True)
class Text:
    """A row of the table as text.

    Attributes:
        cells: its cells.
        paper: whether its figures are the paper's.
    """

    cells: list[str]
    paper: bool


@dataclass(frozen=True)
class Joined:
    """The joined table as text.

    Attributes:
        headings: of the columns.
        rows: the rows.
        notes: lines below it.
    """

    headings: list[str]
    rows: list[Text]
    notes: list[str]


def join(results: Sequence[BenchmarkResult], paper: Sequence[str] = ()) -> Joined:
    """Join results into one table.

    Rows of the same model and adapters become one. The paper's rows follow if results have one of
    their columns; they are of its own model and prompts.

    Args:
        results: results of benchmarks.
        paper: numbers of the paper's tables to add in any case.

    Raises:
        InputError: the paper has no such table.
    """
    rows, notes = _rows(results)
    figures = read_typed(Paper, PAPER)
    if unknown := [number for number in paper if number not in figures["tables"]]:
        raise InputError(
            f"paper = {shortened(unknown[0])!r} is not one of the paper's tables; "
            f"{nearest(unknown[0], figures['tables'])}"
        )
    here = {_without_group(column) for row in rows for column in row.figures}
    for number, each in figures["tables"].items():
        columns = [Column(c["judge"], c["name"], c["unit"]) for c in each["columns"]]
        if number not in paper and not here.intersection(columns):
            continue
        for row in each["rows"]:
            values = {
                column: _plain(column, value)
                for column, value in zip(columns, row["values"], strict=True)
            }
            shown = values if number in paper else {c: v for c, v in values.items() if c in here}
            rows.append(TableRow(f"{row['title']} ({MARK} Table {number})", shown, True))
        notes.append(f"Figures marked {MARK} Table {number}: {figures['source']}; {each['about']}.")
    columns = list(dict.fromkeys(column for row in rows for column in row.figures))
    texts = [
        Text([one_line(row.title), *(_cell(row.figures.get(c)) for c in columns)], row.paper)
        for row in rows
    ]
    return Joined(["", *(one_line(column.heading) for column in columns)], texts, notes)


def _rows(results: Sequence[BenchmarkResult]) -> tuple[list[TableRow], list[str]]:
    """Return a row for each model with adapters, and a note for each judge of each result."""
    rows: list[TableRow] = []
    notes: dict[str, None] = {}
    several = len({result["model"] for result in results}) > 1
    for result in results:
        for each in result["rows"]:
            title = f"{result['model']}: {each['title']}" if several else each["title"]
            new = {
                Column(judge["judge"], figure["name"], figure["unit"], group): figure
                for judge in each["judges"]
                for group, figures in {"": judge["figures"], **judge["groups"]}.items()
                for figure in figures
            }
            # Another row if there are figures of other prompts or settings already.
            alike = [r for r in rows if r.title == title]
            same = [r for r in alike if not r.figures.keys() & new.keys()]
            of = f"{title} ({result['prompts']}, {result['settings'].get('steps')} steps)"
            row = same[0] if same else TableRow(of if alike else title)
            row.figures.update(new)
            rows += [] if same else [row]
        notes.update(dict.fromkeys(_notes(result)))
    return rows, list(notes)


def _notes(result: BenchmarkResult) -> Iterable[str]:
    """Describe what a result's figures depend on: its prompts, and each judge."""
    yield from result["notes"]
    settings = result["settings"]
    shown = ", ".join(
        f"{name} {settings[name]}"
        for name in ("steps", "guidance", "height", "width")
        if settings.get(name) is not None
    )
    for row in result["rows"]:
        for judge in row["judges"]:
            about = ", ".join(f"{name} {value}" for name, value in judge["description"].items())
            pictures = counted(row["pictures"], "picture")
            yield (
                f"{judge['judge']}: {about}; {pictures} of {result['prompts']}, "
                f"model {result['model']}, {shown}."
            )


def _without_group(column: Column) -> Column:
    return Column(column.judge, column.name, column.unit)


def _plain(column: Column, value: float) -> FigureRecord:
    """Return a figure of the paper, which has no intervals."""
    return {
        "name": column.name,
        "value": value,
        "unit": column.unit,
        "low": None,
        "high": None,
        "pictures": 0,
    }


def _cell(figure: FigureRecord | None) -> str:
    """Return a figure with its interval; a dash where there is none."""
    if figure is None:
        return tables.NOTHING
    value, ends = figure["value"], (figure["low"], figure["high"])
    if None in ends:
        return _number(value, figure["unit"])
    low, high = (_number(end, figure["unit"]) for end in ends if end is not None)
    return f"{_number(value, figure['unit'])} [{low}, {high}]"


def _number(value: float, unit: str) -> str:
    if unit in ("pictures", "detections"):
        return f"{value:.0f}"
    return f"{value:.1f}" if unit == "%" else f"{value:.2f}".removesuffix(".00")


def as_markdown(table: Joined) -> str:
    """Format a joined table in Markdown."""
    # All but the title are numbers.
    rows = [[markdown(row.cells[0]), *row.cells[1:]] for row in table.rows]
    made = tables.markdown([markdown(heading) for heading in table.headings], rows)
    return "\n".join([made, "", *(f"- {markdown(line)}" for line in table.notes)]) + "\n"


def as_latex(table: Joined) -> str:
    """Format a joined table in LaTeX."""

    def line(cells: Sequence[str]) -> str:
        return " & ".join("".join(LATEX.get(c, c) for c in cell) for cell in cells) + r" \\"

    return "\n".join(
        [
            rf"\begin{{tabular}}{{l{'r' * (len(table.headings) - 1)}}}",
            line(table.headings),
            r"\hline",
            *(line(row.cells) for row in table.rows),
            r"\end{tabular}",
            *(f"% {one_line(note)}" for note in table.notes),
            "",
        ]
    )


def as_page(table: Joined) -> str:
    """Format a joined table in HTML."""
    return page_environment().from_string(PAGE).render(table=table)


def as_csv(results: Sequence[BenchmarkResult]) -> str:
    """Format all figures as comma-separated values, a line each."""
    lines = [CSV_HEADINGS]
    for result in results:
        for row in result["rows"]:
            for judge in row["judges"]:
                named = (result["prompts"], result["model"], row["title"], judge["judge"])
                lines += _csv_rows(named, {"": judge["figures"], **judge["groups"]})
    return "".join(",".join(line) + "\n" for line in lines)


def _csv_rows(
    named: Sequence[str], groups: Mapping[str, Sequence[FigureRecord]]
) -> list[tuple[str, ...]]:
    rows = []
    for group, figures in groups.items():
        for each in figures:
            ends = ("" if end is None else str(end) for end in (each["low"], each["high"]))
            texts = map(csv_cell, (*named, group, each["name"], each["unit"]))
            rows.append((*texts, str(each["value"]), *ends, str(each["pictures"])))
    return rows


def write_tables(
    folder: Path, results: Sequence[BenchmarkResult], paper: Sequence[str] = ()
) -> str:
    """Write the table of results in Markdown, LaTeX, HTML, and all figures in CSV.

    Returns:
        The table in Markdown.

    Raises:
        InputError: see `join`.
    """
    table = join(results, paper)
    text = as_markdown(table)
    write(folder / f"{TABLE_STEM}.md", text)
    write(folder / f"{TABLE_STEM}.tex", as_latex(table))
    write(folder / f"{TABLE_STEM}.html", as_page(table))
    write(folder / f"{TABLE_STEM}.csv", as_csv(results))
    return text
