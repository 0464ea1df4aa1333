"""Thirty concepts to erase from the shipped small FLUX: ten entities, ten styles, ten relations.

`CONCEPTS` says what each is and how it is asked for, `SETTINGS` what its run does not share with
the others' besides. Both are what the model brings (recipes/emoji_flux/erasing.py), but for the
entities' other words, which were chosen one by one. Sentences for training name other things than
those for evaluation, and pictures are kept of the things in `KEPT`, which nobody erases.
"""

from collections.abc import Mapping
from typing import Any

from erase.config.fields import merge_fields
from erase.runs.defaults import words_for
from recipes.emoji_flux.erasing import ENTITY_PROMPTS, KEPT, KNOWN, PHRASES, PICTURES
from recipes.emoji_flux.world import RELATIONS, STYLES

__all__ = ["CONCEPTS", "ENTITY_PROMPTS", "KEPT", "PHRASES", "PICTURES", "SETTINGS", "VALIDATION"]

# The entity, what stands beside it in one of the sentences, and what else it is not.
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
# Fields by which a concept is asked for; all others are of the method.
_ASKED = ("concept", "prompts", "synonyms", "irrelevant", "evaluation")


def _chosen(name: str) -> dict[str, Any]:
    """What an entity has in the place of the model's words."""
    beside, near = _ENTITIES[name]
    return {
        "prompts": (*ENTITY_PROMPTS, f"a {{}} and a {beside}"),
        "irrelevant": (*(word for word in _FAR if word != name), *near),
        "concept_ablation": {"anchor": near[0]},
        "mace": {"stand_in": near[0]},
        "uce": {"guide": near[0]},
    }


def _split(concept: str, kind: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """A concept's fields in `CONCEPTS` and in `SETTINGS`."""
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

# What choices are made on: other noise than the evaluation's and, of styles and relations, other
# things. Entities are asked for in the same three ways.
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
