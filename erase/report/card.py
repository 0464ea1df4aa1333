"""The model card of an adapter: what it erases, how well, how to use it, its limits and licence.

The card is Markdown with the header that the Hugging Face hub reads.
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pydantic

from convert.adapters.files import FLAX_FILE, read_layers
from erase.config.schema import Config
from erase.data.words.templates import phrase
from erase.evaluation.notes import left_out_note, mean_note
from erase.evaluation.percent import interval, percent
from erase.evaluation.statistics import SIDES
from erase.methods import METHODS
from erase.report.plain_text import Markdown, code, markdown, markdown_environment
from erase.report.report import WORDS, words_of
from erase.runtime import run_folder
from erase.runtime.files import write
from erase.runtime.records import MEND, read_evaluation, read_run
from erase.runtime.results import Cells, EvaluationResult, Sides
from flux_jax.errors import InputError, counted, nearest
from flux_jax.system.files import read_bytes

FILE = "README.md"
# Most bytes of the sheet of pictures.
MOST_SHEET = 256 << 20


# The method that a composition's header names.
COMPOSED = "erase.compose"


HUB = "black-forest-labs/FLUX.1-"
LICENCES = "https://github.com/black-forest-labs/flux/blob/main/model_licenses/LICENSE-FLUX1-"


TEMPLATE = Path(__file__).with_name("card.md.j2")


@dataclass(frozen=True)
class Licence:
    """A licence as the hub's header names it.

    Attributes:
        identifier: of the hub.
        name: what the hub calls a licence that is "other"; None of one that it knows.
        link: its text.
    """

    identifier: str
    name: str | None
    link: str


# Of base models, by their names on the hub; an adapter is derived from its base model.
BASE_LICENCES = {
    f"{HUB}dev": Licence("other", "flux-1-dev-non-commercial-license", f"{LICENCES}dev"),
    f"{HUB}schnell": Licence("apache-2.0", None, f"{LICENCES}schnell"),
}


class Part(pydantic.BaseModel):
    """An adapter in a composition."""

    path: str = ""
    concept: str | None = None


class CompositionHeader(pydantic.BaseModel):
    """How a composition was made, from its header."""

    method: str
    adapters: list[Part]


@dataclass(frozen=True)
class Card:
    """The values of the card's template, which escapes all strings but Markdown.

    Attributes:
        title: the first heading.
        concepts: the erased ones, in quotes.
        how: how the adapter was made, in sentences.
        results: rows of the table of shares.
        notes: sentences below it.
        words: rows of the table of a run's words.
        picture: file beside the card, with pictures before and after.
        prompt: of the example.
        strength: at which the adapter is used.
        steps: denoising steps.
        guidance: distilled guidance scale.
        height: of pictures, in pixels.
        width: of pictures, in pixels.
        text_tokens: of prompts; None is the model's own number.
        model: the base model's folder or name on the hub.
    """

    title: str
    concepts: str
    how: Markdown
    results: Sequence[Markdown]
    notes: Sequence[Markdown]
    words: Sequence[Markdown]
    picture: str | None
    prompt: str
    strength: float
    steps: int
    guidance: float
    height: int
    width: int
    text_tokens: int | None
    model: str


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
    config, evaluation = read_run(workdir), read_evaluation(workdir)
    folder = workdir / run_folder.ADAPTER
    if evaluation and (workdir / run_folder.BEFORE_AFTER).is_file():
        _copy_picture(workdir / run_folder.BEFORE_AFTER, folder)
    adapter, settings = config["adapter"], config["evaluation"]
    name = config.get("method", Config.method)
    if name not in METHODS:
        raise InputError(
            f"{workdir / run_folder.CONFIG}: method = {name!r:.50} is unknown; "
            f"{nearest(name, METHODS)}"
        )
    method = METHODS[name]
    targets = ", ".join(map(code, adapter["targets"]))
    training = "in closed form"
    if method.steps(Config(config["concept"])):
        training = (
            f"{counted(config['iterations'], 'iteration')} at {config['height']} × "
            f"{config['width']} pixels, rank {adapter['rank']}"
        )
    how = Markdown(
        f"Method: {markdown(method.title)}, {markdown(training)}, on the layers {targets}. The "
        "header of the adapter's file has all settings under `settings`."
    )
    template = (settings["templates"] or ["a photo of a {}"])[0]
    notes = [left_out_note(evaluation, markdown), mean_note(evaluation)] if evaluation else []
    card = Card(
        title=f"{config['concept']}, erased",
        concepts=f"“{config['concept']}”",
        how=how,
        results=_rows(config["concept"], evaluation.get("cells", {})) if evaluation else [],
        notes=[Markdown(note) for note in notes if note],
        words=[row(line.name, line.words, line.source) for line in words_of(workdir, config)],
        picture=run_folder.BEFORE_AFTER if (folder / run_folder.BEFORE_AFTER).is_file() else None,
        prompt=phrase(template, config["concept"]),
        strength=settings["strength"],
        steps=settings["steps"],
        guidance=settings["guidance"],
        height=config["height"],
        width=config["width"],
        text_tokens=config["text_tokens"],
        model=config["model"]["path"],
    )
    return _write(folder, card)


def of_composition(
    folder: Path,
    concepts: Sequence[str],
    method: str,
    config: Config,
    evaluated: Sequence[EvaluationResult] = (),
    pictures: Path | None = None,
) -> Path:
    """Writes the card of an adapter that was composed of several.

    Args:
        folder: the adapter's.
        concepts: of its parts.
        method: of the composition.
        config: of a part's run, for the model and its pictures' size.
        evaluated: results of `erase.evaluation.evaluate` for some of the concepts.
        pictures: file of the sheet before and after.
    """
    if pictures is not None and pictures.is_file():
        _copy_picture(pictures, folder)
    named = ", ".join(f"“{concept}”" for concept in concepts)
    settings = config.evaluation
    card = Card(
        title=f"{len(concepts)} concepts, erased",
        concepts=named,
        how=Markdown(
            f"Composed of {len(concepts)} adapters with "
            f"{code(f'erase-anything compose --method {method}')}. The header of the adapter's "
            "file lists them under `settings`."
        ),
        results=[
            line for each in evaluated for line in _rows(each["concept"], each.get("cells", {}))
        ],
        notes=[Markdown(note) for each in evaluated if (note := left_out_note(each, markdown))],
        words=[],
        picture=run_folder.BEFORE_AFTER if (folder / run_folder.BEFORE_AFTER).is_file() else None,
        prompt=phrase("a photo of a {}", concepts[0]),
        strength=settings.strength if evaluated else 1.0,
        steps=settings.steps,
        guidance=settings.guidance,
        height=config.height,
        width=config.width,
        text_tokens=config.text_tokens,
        model=config.model.path,
    )
    return _write(folder, card)


def composed_of(adapter: Path) -> list[str]:
    """The concepts of a composition, from its header; none for any other adapter.

    Args:
        adapter: its file or folder.

    Raises:
        InputError: it cannot be read, or its header is damaged.
    """
    composition = _composition_header(adapter)
    return [part.concept or part.path for part in composition.adapters] if composition else []


def _composition_header(adapter: Path) -> CompositionHeader | None:
    header = read_layers(adapter).metadata
    if header.get("method") != COMPOSED:
        return None
    try:
        return CompositionHeader.model_validate_json(header.get("settings", ""))
    except pydantic.ValidationError as error:
        raise InputError(
            f"{adapter}: its header does not list what it was composed of; compose it again"
        ) from error


def of_evaluated(
    adapter: Path,
    config: Config,
    results: Mapping[str, EvaluationResult],
    workdir: Path,
) -> None:
    """Writes the card of a composition again, with the results for its concepts.

    The card of any other adapter belongs to its run and stays as it is.

    Args:
        adapter: its file or folder.
        config: of an evaluated run.
        results: of `erase.evaluation.evaluate`, by the name of their folder.
        workdir: the folder of those folders.

    Raises:
        InputError: the adapter cannot be read.
    """
    if composition := _composition_header(adapter):
        concepts = composed_of(adapter)
        evaluated = {name: each for name, each in results.items() if each["concept"] in concepts}
        pictures = workdir / next(iter(evaluated), "") / run_folder.BEFORE_AFTER
        folder = adapter if adapter.is_dir() else adapter.parent
        of_composition(
            folder,
            concepts,
            composition.method,
            config,
            list(evaluated.values()),
            pictures if evaluated else None,
        )


def _copy_picture(picture: Path, folder: Path) -> None:
    """Copies a sheet of pictures beside the card.

    Raises:
        InputError: it is larger than the limit.
    """
    write(folder / run_folder.BEFORE_AFTER, read_bytes(picture, MEND, MOST_SHEET))


def _write(folder: Path, card: Card) -> Path:
    model = card.model
    hub = re.fullmatch(r"[\w.-]+/[\w.-]+", model) and not os.path.exists(model)
    text = (
        markdown_environment()
        .from_string(TEMPLATE.read_text())
        .render(
            asdict(card),
            base_model=model if hub else None,
            licence=BASE_LICENCES.get(model),
            folder=str(folder),
            own_format=(folder / FLAX_FILE).is_file(),
        )
    )
    write(folder / FILE, text)
    return folder / FILE


def row(*cells: object) -> Markdown:
    """The cells of a row of a table."""
    return Markdown(" | ".join(map(markdown, cells)))


def _rows(concept: str, cells: Cells) -> list[Markdown]:
    """A row of the table for each cell of an evaluation."""
    return [
        row(
            Markdown(f"{cell}: {text.format(markdown(concept))} ({better})"),
            *_cells(cells[cell]),
        )
        for cell, (better, text) in WORDS.items()
        if cell in cells
    ]


def _cells(sides: Sides) -> list[str]:
    shares = [f"{percent(sides[side])} ({interval(sides[side])})" for side in SIDES]
    return [str(sides["after"]["of"]), *shares]
