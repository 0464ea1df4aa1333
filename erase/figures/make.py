"""Make a figure: check adapters against the model, draw the pictures, write PNG and settings."""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from erase.data.words.word_tokens import marks
from erase.figures import FIGURES
from erase.figures.adapters import described
from erase.figures.layouts import LAYOUTS, Cell, Layout, Request
from erase.figures.sheet import Pictures, render
from erase.model.draw import draw, picture_size, png
from erase.runtime.files import write
from flux_jax.pipeline import Pipeline, load
from flux_jax.settings import SamplingOptions


def make(
    name: str,
    model: str,
    request: Request,
    options: SamplingOptions,
    out: Path,
    command: Sequence[str] = (),
) -> list[Path]:
    """Make a figure of the paper.

    Args:
        name: one of `FIGURES`.
        model: pipeline folder, file or name on the hub.
        request: adapters, prompts and seeds.
        options: sampling options.
        out: folder of the figure.
        command: words of the command that makes it again, for the settings.

    Returns:
        The figure, and its settings beside it.

    Raises:
        InputError: the request does not suit the figure, or an adapter the model.
    """
    layout = LAYOUTS[name](request)
    pipe = load(model)
    cells = list(dict.fromkeys(cell for _, row in layout.rows for cell in row if cell))
    check(pipe, cells, request, options)
    content = png(render(layout, draw_cells(pipe, cells, request, options)))
    files = [out / f"{name}.png", out / f"{name}.json"]
    settings = settings_of(name, model, request, options, layout)
    settings["command"] = shlex.join(command)
    write(files[0], content)
    write(files[1], json.dumps(settings, indent=1, ensure_ascii=False) + "\n")
    return files


def check(
    pipe: Pipeline, cells: Sequence[Cell], request: Request, options: SamplingOptions
) -> None:
    """Check that all pictures can be drawn; reads no weights.

    Raises:
        InputError: the size, a prompt or an adapter does not suit the model.
    """
    pipe.grid(*picture_size(pipe, options))
    pipe.tokenize([cell.prompt for cell in cells])
    for cell in cells:
        if cell.silenced is not None:
            marks(pipe.tokenizer_2, [cell.prompt], cell.silenced)
    for each in request.adapters:
        pipe.check(each.adapter, str(each.path))


def draw_cells(
    pipe: Pipeline, cells: Sequence[Cell], request: Request, options: SamplingOptions
) -> Pictures:
    """Draw each cell once; those with the same adapters are drawn together."""
    groups: dict[tuple[Any, ...], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.adapters, cell.silenced), []).append(cell)
    # All together, so that text encoders are read once.
    pipe.remember([cell.prompt for cell in cells], options.batch)
    pictures: dict[Cell, Any] = {}
    for number, ((weights, silenced), group) in enumerate(groups.items(), start=1):
        parts = [request.adapters[place] for place, _ in weights]
        drawn = draw(
            pipe,
            [cell.prompt for cell in group],
            [cell.seed for cell in group],
            options,
            adapters=[
                (part.adapter, weight * part.strength)
                for part, (_, weight) in zip(parts, weights, strict=True)
            ],
            silenced=silenced,
            title=f"pictures, part {number} of {len(groups)}",
        )
        pictures |= dict(zip(group, drawn, strict=True))
    return pictures


def settings_of(
    name: str, model: str, request: Request, options: SamplingOptions, layout: Layout
) -> dict[str, Any]:
    """Return what a figure was made of, of JSON types."""
    return {
        "figure": name,
        "paper": FIGURES[name],
        "model": model,
        "adapters": [described(each) for each in request.adapters],
        "sampling": asdict(options),
        "headings": list(layout.headings),
        "rows": [
            {"title": title, "pictures": [_cell(cell) for cell in cells]}
            for title, cells in layout.rows
        ],
    }


def _cell(cell: Cell | None) -> Mapping[str, Any] | None:
    if cell is None:
        return None
    adapters = [{"adapter": place, "weight": weight} for place, weight in cell.adapters]
    return {
        "prompt": cell.prompt,
        "seed": cell.seed,
        "adapters": adapters,
        "silenced": cell.silenced,
    }
