"""Thirty concepts to erase from the shipped small FLUX: ten entities, ten styles, ten relations.

`CONCEPTS` holds each concept's words and prompts; `SETTINGS` the other fields in which its run
differs. Both are the defaults that the model ships with (recipes/emoji_flux/erasing.py), except for
the words of entities, which were chosen one by one. Training sentences and evaluation prompts name
different things. Pictures of the things in `KEPT`, which no run erases, are preserved.
"""

from collections.abc import Mapping
from typing import Any

from erase.config.fields import merge_fields
from erase.runs.defaults import words_for
from recipes.emoji_flux.erasing import ENTITY_PROMPTS, KEPT, KNOWN, PHRASES, PICTURES
from recipes.emoji_flux.world import RELATIONS, STYLES

__all__ = ["CONCEPTS", "ENTITY_PROMPTS", "KEPT", "PHRASES", "PICTURES", "SETTINGS", "VALIDATION"]

# Entity: (the second object in one of the sentences, irrelevant words close to it).
_ENTITIES = {
    "soccer ball": ("dog", ("volleyball", "basketball", "apple", "pool ball")),
    "cat": ("book", ("dog", "rabbit", "horse", "panda")),
    "car": ("house", ("bus", "train", "bicycle", "rocket")),
    "airplane": ("cloud", ("rocket", "helicopter", "bus", "train")),
    "hamburger": ("balloon", ("pizza", "doughnut", "cake", "apple")),
    "rabbit": ("star", ("dog", "cat", "horse", "panda")),
    "train": ("tower", ("bus", "car", "ship", "rocket")),
    "house": ("key", ("church", "tower", "building", "ferris wheel")),
    "umbrella": ("frog", ("balloon", "book", "camera", "trophy")),
    "santa claus": ("globe", ("princess", "skull", "ghost", "heart")),
}
_FAR = ("banana", "castle", "penguin", "umbrella", "guitar")
# Fields for the concept's words and prompts; all others are settings of methods.
_ASKED = ("concept", "prompts", "synonyms", "irrelevant", "evaluation")


def _chosen(name: str) -> dict[str, Any]:
    """Words of an entity that replace the model's defaults."""
    beside, near = _ENTITIES[name]
    return {
        "prompts": (*ENTITY_PROMPTS, f"a {{}} and a {beside}"),
        "irrelevant": (*(word for word in _FAR if word != name), *near),
        **{name: {"anchor": near[0]} for name in ("concept_ablation", "gem", "eraseflow")},
        "mace": {"stand_in": near[0]},
        "uce": {"guide": near[0]},
    }


def _split(concept: str, kind: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split a concept's fields into those of `CONCEPTS` and those of `SETTINGS`."""
    own = {"concept": concept} | (_chosen(concept) if kind == "entity" else {})
    fields = merge_fields(words_for(KNOWN, concept, kind, {}), own)
    strength = fields["evaluation"].pop("strength", None)
    asked = {name: fields[name] for name in _ASKED}
    settings = {name: fields[name] for name in fields if name not in (*_ASKED, "kind")}
    return asked, settings | ({} if strength is None else {"evaluation": {"strength": strength}})


_FIELDS = {
    name.replace(" ", "_"): _split(PHRASES.get(name, name), kind)
    for kind, names in (("entity", _ENTITIES), ("style", STYLES), ("relation", RELATIONS))
    for name in names
}
CONCEPTS: Mapping[str, Mapping[str, Any]] = {name: asked for name, (asked, _) in _FIELDS.items()}
SETTINGS: Mapping[str, Mapping[str, Any]] = {name: own for name, (_, own) in _FIELDS.items()}

# Validation, for choosing settings: other noise than the evaluation's and, for styles and
# relations, other things. Entities have the same three templates.
_VALIDATION_TEMPLATES = {
    **dict.fromkeys(
        STYLES,
        tuple(f"a {thing} in the style of {{}}" for thing in ("cat", "car", "house", "banana")),
    ),
    **dict.fromkeys(
        RELATIONS,
        (
            "a cat {} jeans",
            "a rabbit {} a car",
            "a photo of a banana {} a house",
            "a horse {} grapes",
        ),
    ),
}
VALIDATION: Mapping[str, Mapping[str, Any]] = {
    **{name.replace(" ", "_"): {"evaluation": {"seed": 2_000_000}} for name in _ENTITIES},
    **{
        name.replace(" ", "_"): {"evaluation": {"seed": 2_000_000, "templates": templates}}
        for name, templates in _VALIDATION_TEMPLATES.items()
    },
}
