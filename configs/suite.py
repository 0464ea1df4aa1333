"""Thirty concepts to erase from the shipped small FLUX: ten entities, ten styles, ten relations.

`CONCEPTS` says what each is and how it is asked for, `SETTINGS` what its run does not share with
the others' besides. Sentences for training name other things than those for evaluation, and
pictures are kept of the things in `KEPT`, which nobody erases.
"""

from collections.abc import Mapping
from itertools import cycle
from typing import Any

from erase.prompts import phrase
from recipes.emoji_flux.world import ENTITIES, INVERSE, RELATIONS, STYLES

# Every third entity. The other two thirds are seen by the evaluation alone.
# fmt: off
KEPT = (
    "apple", "watermelon", "cherry", "mushroom", "cake", "coffee", "french fries", "volleyball",
    "dog", "pig", "frog", "fish", "crab", "bee", "snail", "bicycle", "sailboat", "tower",
    "castle", "shoe", "crown", "key", "light bulb", "balloon", "pumpkin", "star", "lightning",
    "explosion", "cactus", "globe", "ghost", "handshake",
)
# fmt: on
PICTURES = tuple(phrase("a photo of a {}", name) for name in KEPT)

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
ENTITY_PROMPTS = (
    "a photo of a {}",
    "a {}",
    "a picture of a {}",
    "an image of a {} on a blue background",
    "an emoji of a {} in flat style",
)

# Forms that people may write instead.
_STYLES = {
    "noto": ("google", "notoemoji"),
    "twitter": ("twemoji", "tweet"),
    "render": ("rendering", "3d"),
    "blob": ("blobby", "blobmoji"),
    "emojione": ("emoji one", "joypixels"),
    "silhouette": ("silhouettes", "shadow"),
    "flat": ("flattened", "flat design"),
    "lineart": ("line art", "outline"),
    "firefox": ("firefoxos", "mozilla"),
    "sticker": ("stickers", "decal"),
}
# Many things, or what is learnt about a style stays with the few that were named.
_IN_STYLE = (
    ("a {}", " in the style of {}"),
    ("a photo of a {}", " in {} style"),
    ("a {}", " in {} style"),
)
_STYLE_PROMPTS = (
    "an art in the style of {}",
    "a picture in the style of {}",
    *(phrase(thing, name) + style for (thing, style), name in zip(cycle(_IN_STYLE), KEPT)),
)

# As they stand between two things, how else that may be said, and what to draw instead. Two things
# joined by "and" are drawn beside or above each other, so that is nothing else for these.
_RELATIONS = {
    "left of": ("left of", ("to the left side of", "leftward of"), "behind"),
    "right of": ("right of", ("to the right side of", "rightward of"), "behind"),
    "above": ("above", ("over",), "behind"),
    "below": ("below", ("under", "beneath"), "behind"),
    "in": ("in", ("inside",), "and"),
    "on": ("on", ("on top of", "atop"), "and"),
    "behind": ("behind", ("at the back of", "in back of"), "and"),
    "amidst": ("amidst", ("among", "surrounded by"), "and"),
    "back to back": ("back to back with", ("back-to-back with",), "and"),
    "hugging close": ("hugging close to", ("embracing", "cuddling"), "and"),
}
# How a relation is written between two things.
PHRASES = {relation: between for relation, (between, _, _) in _RELATIONS.items()}
_RELATION_PROMPTS = tuple(
    phrase("a {} ", a) + "{} " + phrase("a {}", b)
    for a, b in zip(KEPT, KEPT[16:] + KEPT[:16], strict=True)
)


def _entity(name: str) -> dict[str, Any]:
    beside, near = _ENTITIES[name]
    return {
        "concept": name,
        "prompts": (*ENTITY_PROMPTS, f"a {{}} and a {beside}"),
        "synonyms": next(entity.synonyms for entity in ENTITIES if entity.name == name),
        "irrelevant": (*(word for word in _FAR if word != name), *near),
        "evaluation": {"templates": ("a photo of a {}", "a {}", "a picture of a {}")},
    }


def _other_styles(name: str) -> tuple[str, ...]:
    return tuple(style for style in STYLES if style != name)


def _style(name: str) -> dict[str, Any]:
    return {
        "concept": name,
        "prompts": _STYLE_PROMPTS,
        "synonyms": _STYLES[name],
        "irrelevant": _other_styles(name),
        "evaluation": {
            "templates": tuple(
                phrase("a {}", thing) + " in the style of {}"
                for thing in ("penguin", "guitar", "lemon", "elephant")
            )
        },
    }


def _other_relations(name: str) -> tuple[str, ...]:
    """Those that are not the concept in other words: what is above has something below."""
    apart = (name, INVERSE.get(name))
    return tuple(_RELATIONS[relation][0] for relation in RELATIONS if relation not in apart)


def _relation(name: str) -> dict[str, Any]:
    between, synonyms, _ = _RELATIONS[name]
    return {
        "concept": between,
        "prompts": _RELATION_PROMPTS,
        "synonyms": synonyms,
        "irrelevant": _other_relations(name),
        "evaluation": {
            "templates": (
                "a penguin {} a guitar",
                "an elephant {} a lemon",
                "a photo of a monkey {} a camera",
                "a truck {} a sunflower",
            ),
            "others": tuple(_RELATIONS[other][0] for other in RELATIONS if other != name),
        },
    }


def _of_methods(place: str, instead: str | None) -> dict[str, Any]:
    """What other methods lead the concept to.

    Args:
        place: words that make sense in the concept's place.
        instead: what L_esd has there; None is the empty prompt.
    """
    return {
        "concept_ablation": {"anchor": place},
        "mace": {"stand_in": place},
        "uce": {"guide": place},
        **{name: {"stand_in": instead} for name in ("esd", "eap", "meta_unlearning")},
    }


def _entity_settings(name: str) -> dict[str, Any]:
    _, near = _ENTITIES[name]
    return {"upper": {"prompts": PICTURES}, **_of_methods(near[0], None)}


def _style_settings(name: str) -> dict[str, Any]:
    shown = zip(PICTURES, cycle(_other_styles(name)))
    plain = "sticker" if name == "flat" else "flat"
    return {
        "lower": {"stand_in": plain},
        **_of_methods(plain, plain),
        "upper": {"prompts": tuple(f"{thing} in the style of {style}" for thing, style in shown)},
    }


def _relation_settings(name: str) -> dict[str, Any]:
    shown = zip(KEPT, KEPT[5:] + KEPT[:5], cycle(_other_relations(name)))
    return {
        # In another order a sentence has another relation.
        "bank": {"shuffled": 0.0},
        "lower": {"stand_in": _RELATIONS[name][2]},
        **_of_methods(_RELATIONS[name][2], _RELATIONS[name][2]),
        "upper": {
            "prompts": tuple(
                phrase(phrase("a {} ", a) + f"{word} a {{}}", b) for a, b, word in shown
            )
        },
        # Half of it still erases, and other relations keep more.
        "evaluation": {"strength": 0.5},
    }


CONCEPTS: Mapping[str, Mapping[str, Any]] = {
    **{name.replace(" ", "_"): _entity(name) for name in _ENTITIES},
    **{name: _style(name) for name in _STYLES},
    **{name.replace(" ", "_"): _relation(name) for name in _RELATIONS},
}
SETTINGS: Mapping[str, Mapping[str, Any]] = {
    **{name.replace(" ", "_"): _entity_settings(name) for name in _ENTITIES},
    **{name: _style_settings(name) for name in _STYLES},
    **{name.replace(" ", "_"): _relation_settings(name) for name in _RELATIONS},
}

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
