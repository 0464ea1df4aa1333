"""Erase one of the fifty persons of the paper's celebrity study from FLUX.1 [dev].

    python -m erase.train --config configs/flux/celebrity.py:adele --workdir runs/adele \
        --config.model.path=/path/to/FLUX.1-dev

After the colon is the person; then, after a slash, losses of the paper's Table 4: `full` (the
default), `esd_attn`, `esd_lora`, `esd_rsc`, `attn_rsc` or `attn_lora_rsc`, as in
`celebrity.py:adele/esd_rsc`. The names are in `celebrities.json`, which cites the paper's Table 7.
`python -m configs.flux.prompts` writes the prompts for `erase-anything benchmark`.

Needs: the weights, and one GPU with 80 GB.
Cost: 1,000 iterations at 512 x 512; with all losses 5.5 minutes on one H100 with random weights.
Expected: a 3.6 MiB adapter. These were not run on the real weights.
"""

from collections.abc import Collection, Mapping
from pathlib import Path

from ml_collections import ConfigDict
from typing_extensions import TypedDict

from configs.flux.concept import slug_of
from configs.flux.settings import SETTINGS, split_name
from erase.runs import configure
from flux_jax.errors import InputError, nearest
from flux_jax.system.json_files import read_typed

FILE = Path(__file__).with_name("celebrities.json")
# Losses of the two levels.
LOWER, UPPER = ("esd", "attn"), ("lora", "rsc")
# Losses of each row of Table 4, by their fields' names; all others have weight 0.
LOSSES: Mapping[str, tuple[str, ...]] = {
    "esd_attn": ("esd", "attn"),
    "esd_lora": ("esd", "lora"),
    "esd_rsc": ("esd", "rsc"),
    "attn_rsc": ("attn", "rsc"),
    "attn_lora_rsc": ("attn", "lora", "rsc"),
    "full": ("esd", "attn", "lora", "rsc"),
}
# Rows of Table 4 as the paper prints them.
TITLES: Mapping[str, str] = {
    name: " + ".join(f"L_{loss}" for loss in losses) if name != "full" else "full loss"
    for name, losses in LOSSES.items()
}
PROMPTS = (
    "a photo of {}",
    "{} at a table with a cup of coffee",
    "a close-up of {} with a hat",
    "{} walking down a street",
    "a drawing of {} on a stage",
    "{} next to a horse",
)
IRRELEVANT = (
    *("a farmer", "a nurse", "a chess player", "a clown", "a robot", "a statue", "a stranger"),
    *("a teenager", "an old fisherman"),
)
# MACE's, by which the erasure is measured; none of them is trained on.
TEMPLATES = (
    "a portrait of {}",
    "a sketch of {}",
    "an oil painting of {}",
    "{} in an official photo",
    "an image capturing {} at a public event",
)


class Celebrities(TypedDict):
    """The content of `celebrities.json`.

    Attributes:
        source: of the names.
        notes: on the names, a line each.
        erased: persons to erase, each with other names of theirs.
        kept: persons and characters on whom Acc_ir is measured.
        invented: those of `kept` who are characters of fiction.
    """

    source: str
    notes: list[str]
    erased: dict[str, list[str]]
    kept: list[str]
    invented: list[str]


def celebrities() -> Celebrities:
    """Read the names."""
    return read_typed(Celebrities, FILE, "restore it from the repository")


def erased_by_slug() -> dict[str, str]:
    """Return the persons to erase by their names on the command line."""
    return {slug_of(name): name for name in celebrities()["erased"]}


def get_config(name: str = "adele") -> ConfigDict:
    """Return the run of a person; after a slash, with other losses."""
    slug, losses = split_name(name)
    persons, losses = erased_by_slug(), losses or "full"
    if slug not in persons:
        raise InputError(
            f"person = {slug!r:.60} is not one of the fifty to erase; {nearest(slug, persons)}"
        )
    if losses not in LOSSES:
        raise InputError(f"losses = {losses!r:.60} are unknown; {nearest(losses, LOSSES)}")
    concept, known = persons[slug], celebrities()
    return configure(
        "paper",
        concept=concept,
        prompts=PROMPTS,
        synonyms=tuple(known["erased"][concept]),
        irrelevant=IRRELEVANT,
        evaluation={
            "pictures": 8,
            "templates": TEMPLATES,
            "others": tuple(known["kept"][:3]),
            "batch": 2,
        },
        lower=without(LOWER, losses),
        upper=without(UPPER, losses),
        **SETTINGS,
    )


def without(level: Collection[str], losses: str) -> dict[str, float]:
    """Return weights of 0 for the losses of a level that a row of Table 4 leaves out."""
    return {loss: 0.0 for loss in level if loss not in LOSSES[losses]}
