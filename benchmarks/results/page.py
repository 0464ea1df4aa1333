"""Writes RESULTS.md: the text of docs/results/results.md.j2 with tables and figures.

    python -m benchmarks.results.page

The text calls tables and figures by their names in `TABLES` and `FIGURES`. The numbers are in
docs/results, and the figures are written there.
"""

import functools
import io
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from absl import app, flags
from matplotlib.figure import Figure

from benchmarks.results import figures, tables
from erase.cli.flags import begin, parse_flags
from erase.report.tables import methods
from erase.runtime.files import read_json, write
from flux_jax.errors import InputError, exits_cleanly

TEMPLATE = "results.md.j2"
TABLES: Mapping[str, Callable[..., str]] = {
    "kinds": tables.kinds,
    "runs": tables.runs,
    "apart": tables.apart,
    "variants": tables.variants,
    "intervals": tables.intervals,
    "attacks": tables.attacks,
    "speed": tables.speed,
    "swaps": tables.swaps,
    "compositions": tables.compositions,
    "composed_kinds": tables.composed_kinds,
    "methods": methods,
    "full_size": tables.full_size,
    "relearning": tables.relearning,
    "measured_axes": tables.axes,
}
FIGURES: Mapping[str, Callable[..., Figure]] = {
    "curve": figures.curve,
    "dots": figures.dots,
    "bars": figures.attack_bars,
    "composed": figures.composed,
    "compared": figures.methods,
    "radar": figures.axes,
}


def draw(folder: Path, out: Path) -> None:
    """Writes the page and its figures.

    Args:
        folder: of the numbers and the text; figures are written to it.
        out: the page.

    Raises:
        InputError: the text, or numbers that it uses, are missing.
    """

    def table(render: Callable[..., str], name: str, *more: object) -> str:
        return render(read_numbers(folder, name), *more)

    def picture(figure: Callable[..., Figure], name: str, alt: str, *more: object) -> str:
        path = folder / f"{name}.png"
        buffer = io.BytesIO()
        figure(read_numbers(folder, name), *more).savefig(
            buffer, dpi=150, metadata={"Software": None}
        )
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
    table_calls = {name: functools.partial(table, render) for name, render in TABLES.items()}
    picture_calls = {name: functools.partial(picture, figure) for name, figure in FIGURES.items()}
    here = [path.stem for path in folder.glob("*.json")]
    write(out, page.render(**table_calls, **picture_calls, here=here) + "\n")


def read_numbers(folder: Path, name: str) -> Any:
    """The numbers of a name, of the type that the table or figure says.

    Raises:
        InputError: they are not there.
    """
    return read_json(folder / f"{name}.json", "the page's text asks for it")


@exits_cleanly
def main(argv: Sequence[str]) -> None:
    """The command; see the module's docstring."""
    begin(argv)
    draw(Path(flags.FLAGS.results), Path(flags.FLAGS.out))


if __name__ == "__main__":
    flags.DEFINE_string("results", "docs/results", "Folder of the numbers and the text.")
    flags.DEFINE_string("out", "RESULTS.md", "The page.")
    app.run(main, flags_parser=parse_flags)
