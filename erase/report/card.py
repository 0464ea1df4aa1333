"""The model card beside an adapter: what it erases, how it was made, what it does, how to use it.

The card is Markdown with the header that the
Hugging Face hub reads.
"""

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import pydantic

from convert.adapters.files import read_layers
from erase.config.schema import Config
from erase.data.words.templates import phrase
from erase.evaluation.notes import left_out_note, mean_note
from erase.evaluation.percent import interval, percent
from erase.methods import METHODS
from erase.report.report import WORDS, words_of
from erase.runtime import run_folder
from erase.runtime.files import read_json, write
from erase.runtime.run_folder import MISSING
from flux_jax.errors import InputError

FILE = "README.md"


# The method that a composition's header names.
COMPOSED = "erase.compose"


TEMPLATE = Path(__file__).with_name("card.md.j2")


class Part(pydantic.BaseModel):
    """An adapter in a composition."""

    path: str = ""
    concept: str | None = None


class Made(pydantic.BaseModel):
    """What a composition's header tells of how it was made."""

    method: str
    adapters: list[Part]


def of_run(workdir: str | Path) -> Path:
    """Writes the card of a run's adapter, with the pictures of its evaluation if there was one.

    Args:
        workdir: the run's folder, with `config.json`, `adapter/` and what
            `erase.evaluation.evaluate` wrote.

    Returns:
        The card's path.

    Raises:
        InputError: there is no `config.json`, or a file is damaged.
    """
    workdir = Path(workdir)
    config, file = (
        read_json(workdir / run_folder.CONFIG, MISSING),
        workdir / run_folder.EVALUATION,
    )
    evaluated = read_json(file) if file.is_file() else {}
    cells = evaluated.get("cells", {})
    folder = workdir / run_folder.ADAPTER
    if evaluated and (workdir / run_folder.BEFORE_AFTER).is_file():
        write(folder / run_folder.BEFORE_AFTER, (workdir / run_folder.BEFORE_AFTER).read_bytes())
    results = _rows(config["concept"], cells)
    adapter, settings = config["adapter"], config["evaluation"]
    method = METHODS[config.get("method", Config.method)]
    targets = ", ".join(f"`{target}`" for target in adapter["targets"])
    made = f"in closed form, on {targets}"
    if method.steps(Config(config["concept"])):
        made = (
            f"{config['iterations']} iterations at {config['height']} x {config['width']}, rank "
            f"{adapter['rank']} on {targets}"
        )
    how = (
        f"Made by {method.title}: {made}. All settings are in the header of the adapter's file, "
        "under `settings`."
    )
    template = (settings["templates"] or ["a photo of a {}"])[0]
    return _write(
        folder,
        title=f"{config['concept']}, erased",
        concepts=f"“{config['concept']}”",
        how=how,
        results=results,
        notes=[note for of in (left_out_note, mean_note) if (note := of(evaluated))],
        words=[
            " | ".join(map(escaped, (line.name, line.words, line.source)))
            for line in words_of(workdir, config)
        ],
        picture=run_folder.BEFORE_AFTER if (folder / run_folder.BEFORE_AFTER).is_file() else None,
        prompt=phrase(template, config["concept"]),
        strength=settings["strength"],
        steps=settings["steps"],
        guidance=settings["guidance"],
        config=config,
    )


def of_composition(
    folder: Path,
    concepts: Sequence[str],
    method: str,
    config: Mapping[str, Any],
    evaluated: Sequence[Mapping[str, Any]] = (),
    pictures: Path | None = None,
) -> Path:
    """Writes the card of an adapter that was composed of several.

    Args:
        folder: the adapter's.
        concepts: of its parts.
        method: how they became one.
        config: of a part's run, for the model and its pictures' size.
        evaluated: what `erase.evaluation.evaluate` found with it for some of the concepts.
        pictures: a sheet before and after.
    """
    if pictures is not None and pictures.is_file():
        write(folder / run_folder.BEFORE_AFTER, pictures.read_bytes())
    named = ", ".join(f"“{concept}”" for concept in concepts)
    settings = config["evaluation"]
    return _write(
        folder,
        title=f"{len(concepts)} concepts, erased",
        concepts=named,
        how=f"Made of {len(concepts)} adapters by `erase-anything compose --method {method}`; the "
        "header of the adapter's file tells which, under `settings`.",
        results=[
            row for each in evaluated for row in _rows(each["concept"], each.get("cells", {}))
        ],
        notes=[note for each in evaluated if (note := left_out_note(each))],
        words=[],
        picture=run_folder.BEFORE_AFTER if (folder / run_folder.BEFORE_AFTER).is_file() else None,
        prompt=phrase("a photo of a {}", concepts[0]),
        strength=settings["strength"] if evaluated else 1.0,
        steps=settings["steps"],
        guidance=settings["guidance"],
        config=config,
    )


def composed_of(adapter: Path) -> list[str]:
    """The concepts of a composition, as its header tells; none of another adapter.

    Args:
        adapter: its file or folder.

    Raises:
        InputError: it cannot be read, or its header is damaged.
    """
    made = _made(adapter)
    return [part.concept or part.path for part in made.adapters] if made else []


def _made(adapter: Path) -> Made | None:
    header = read_layers(adapter).metadata
    if header.get("method") != COMPOSED:
        return None
    try:
        return Made.model_validate_json(header.get("settings", ""))
    except pydantic.ValidationError as error:
        raise InputError(
            f"{adapter}: its header does not tell what it was composed of; compose it again"
        ) from error


def of_evaluated(
    adapter: Path,
    config: Mapping[str, Any],
    results: Mapping[str, Mapping[str, Any]],
    workdir: Path,
) -> None:
    """Writes the card of a composition anew, with what was found of its concepts.

    The card of any other adapter is its run's and is left alone.

    Args:
        adapter: its file or folder.
        config: of an evaluated run.
        results: of `erase.evaluation.evaluate`, by the name of their folder.
        workdir: where those folders are.

    Raises:
        InputError: the adapter cannot be read.
    """
    if made := _made(adapter):
        concepts = composed_of(adapter)
        own = {name: each for name, each in results.items() if each["concept"] in concepts}
        pictures = workdir / next(iter(own), "") / run_folder.BEFORE_AFTER
        folder = adapter if adapter.is_dir() else adapter.parent
        of_composition(
            folder, concepts, made.method, config, list(own.values()), pictures if own else None
        )


def _write(folder: Path, *, config: Mapping[str, Any], **said: Any) -> Path:
    model = config["model"]["path"]
    hub = re.fullmatch(r"[\w.-]+/[\w.-]+", model) and not os.path.exists(model)
    # Markdown, of which the hub shows no scripts; escapes for HTML would stand in it as they are.
    environment = jinja2.Environment(  # nosec B701
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    # Characters stay what they are, within Python's and YAML's quotes as well.
    environment.filters["tojson"] = lambda text: json.dumps(text, ensure_ascii=False)
    sizes = {name: config[name] for name in ("height", "width", "text_tokens")}
    text = environment.from_string(TEMPLATE.read_text()).render(
        **said, **sizes, model=model, base_model=model if hub else None, folder=str(folder)
    )
    write(folder / FILE, text)
    return folder / FILE


def escaped(text: str) -> str:
    """A text as Markdown shows it in one line, whatever it holds."""
    return re.sub(r"([\\`*_{}\[\]<>#|!~&])", r"\\\1", " ".join(text.split()))


def _rows(concept: str, cells: Mapping[str, Any]) -> list[str]:
    """A line of the table for each cell of an evaluation."""
    return [
        " | ".join([f"{text.format(concept)} ({better})", *_cells(cells[cell])])
        for cell, (better, text) in WORDS.items()
        if cell in cells
    ]


def _cells(sides: Mapping[str, Any]) -> list[str]:
    shown = [str(sides["after"]["of"])]
    for side in ("before", "after"):
        shown.append(f"{percent(sides[side])} ({interval(sides[side])})")
    return shown
