"""Plan a whole table of the paper: adapters, pictures, GPU hours, and memory of each kind of run.

`erase-anything plan --table 3` prints it. No weights are read.
"""

import sys
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from configs.flux import cost
from configs.flux.prompts import OTHER_SEEDS, PICTURES, SEEDS
from configs.flux.tables import COCO, I2P, TABLES, Part
from convert import tables
from erase.config.schema import Config
from erase.data.words.irrelevant import listed
from erase.methods import method_of
from erase.methods.planning.configured import context_of
from erase.model.open import open_model
from erase.training import memory_plan
from flux_jax.errors import say

HOUR = 3600
ALWAYS = (
    "Training: operations of each iteration at the speed of EraseAnything's, measured at 512 x 512 "
    "with random weights; other methods' iterations were not timed at this size.",
    f"A picture takes {cost.PICTURE} s, measured at 512 x 512 with 28 steps and random weights; "
    "each run draws its trajectories and pictures to preserve before it trains.",
    "Not included: reading weights, compilation, judging, and the runs' own evaluation pictures.",
)
ASSUMED = {
    "2": f"Pictures: {I2P:,} prompts of I2P and {COCO:,} captions of MS-COCO for each row.",
    "3": (
        f"Pictures: {PICTURES} each of the concept, its synonyms and other concepts for each "
        "adapter, as `python -m configs.flux.prompts` writes them; the paper gives no number. "
        "Without the base model, which the paper's table does not have."
    ),
    "4": (
        f"Pictures: five templates, with {SEEDS} seeds of the person and {OTHER_SEEDS} of each of "
        "the fifty who are kept, for each adapter; the paper gives no number."
    ),
}


@dataclass(frozen=True)
class Hours:
    """A row of the plan.

    Attributes:
        title: of the row.
        adapters: number of them.
        iterations: of each; 0 for a closed form or the base model.
        training: GPU hours of training all of them, with their preparation.
        pictures: to draw with all of them.
        drawing: GPU hours of drawing.
    """

    title: str
    adapters: int
    iterations: int
    training: float
    pictures: int
    drawing: float


def hours(part: Part) -> Hours:
    """Estimate a row; reads no weights."""
    configs = list(part.runs.values())
    seconds = 0.0
    if configs:
        pipe = open_model(configs[0], unread=True)
        seconds = sum(cost.training_seconds(config, pipe) for config in configs)
    return Hours(
        part.title,
        len(configs),
        cost.iterations(configs[0]) if configs else 0,
        seconds / HOUR,
        part.pictures,
        part.pictures * cost.PICTURE / HOUR,
    )


def total(rows: Sequence[Hours]) -> Hours:
    """Sum of rows."""
    sums = (
        sum(getattr(row, name) for row in rows)
        for name in ("adapters", "training", "pictures", "drawing")
    )
    adapters, training, pictures, drawing = sums
    return Hours("total", adapters, 0, training, pictures, drawing)


def kinds(parts: Sequence[Part]) -> dict[str, Config]:
    """Return the runs of a table whose programs differ, each for several rows if they are alike.

    Returns:
        The run with the most words, and so the largest bank, of each kind, by the title of its row.
    """
    runs: dict[Hashable, list[tuple[str, Config]]] = {}
    for part in parts:
        for config in list(part.runs.values())[:1]:
            pipe = open_model(config, unread=True)
            context = context_of(config, pipe.transformer, pipe.mesh)
            alike = [(part.title, each) for each in part.runs.values()]
            runs.setdefault((config.method, context), []).extend(alike)
    chosen = {}
    for alike in runs.values():
        titles = list(dict.fromkeys(title for title, _ in alike))
        name = f"{titles[0]} and {len(titles) - 1} more" if titles[1:] else titles[0]
        chosen[name] = max((config for _, config in alike), key=_forms)
    return chosen


def _forms(config: Config) -> int:
    return method_of(config).needs(config, listed(config), None).forms


def needs(chosen: Mapping[str, Config]) -> Iterator[tuple[str, memory_plan.Need]]:
    """Yield the memory of kinds of runs; compiles their programs.

    Preparation and drawing are the same for all kinds, so they are compiled for the first one.

    Args:
        chosen: from `kinds`.

    Yields:
        The kind and its program, and the memory on each device.
    """
    for place, (title, config) in enumerate(chosen.items()):
        pipe = open_model(config, unread=True)
        found = memory_plan.training(config, 1, pipe)
        for name, need in found if place else memory_plan.plan({"": config}, pipe):
            yield f"{title}: {name}" if name.endswith(" update") else name, need


def show_hours(number: str, parts: Sequence[Part]) -> None:
    """Print adapters, pictures and GPU hours of a table, and what they assume."""
    # Without padding, for a terminal of 80 columns.
    table = tables.Table(title=f"Table {number} of the paper: hours (h) on one H100", padding=0)
    headings = ("", "adapters", "iterations", "train h", "pictures", "draw h", "all h")
    for heading in headings:
        table.add_column(heading, justify="right" if heading else "left")
    rows = [hours(part) for part in parts]
    for row in [*rows, total(rows)]:
        table.add_row(
            row.title,
            f"{row.adapters or ''}",
            f"{row.iterations or ''}",
            f"{row.training:.2f}" if row.adapters else "",
            f"{row.pictures:,}",
            f"{row.drawing:.1f}",
            f"{row.training + row.drawing:.1f}",
        )
    tables.show(table, *(f"- {line}" for line in (ASSUMED[number], *ALWAYS)))


def show(number: str) -> bool:
    """Print the plan of a table; memory comes after the hours, since programs are compiled for it.

    Args:
        number: key of `TABLES`.

    Returns:
        Whether all programs fit; True if the devices do not report their memory.
    """
    parts = TABLES[number]()
    show_hours(number, parts)
    chosen = kinds(parts)
    table = tables.Table(title="GB (10⁹ bytes) needed on each device, by program")
    for heading in ("", "weights and data", "temporaries", "total"):
        table.add_column(heading, justify="right" if heading else "left")
    most = 0
    for name, need in needs(chosen):
        say(f"compiled: {name}", sys.stderr)
        data = need.arguments + need.results + need.beside
        sizes = (data, need.temporaries, need.total)
        table.add_row(name, *(f"{size / memory_plan.GB:.2f}" for size in sizes))
        most = max(most, need.total)
    tables.show(table)
    return memory_plan.show_fit(most, open_model(next(iter(chosen.values())), unread=True))
