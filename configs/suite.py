"""Thirty concepts to erase from the shipped small FLUX: ten entities, ten styles, ten relations.

Each has what its run does not share with the others'. Sentences for training name other things
than those for evaluation, and pictures are kept of the things in `KEPT`, which nobody erases.
"""

from collections.abc import Mapping
from itertools import cycle
from typing import Any

from erase.prompts import phrase
from recipes.emoji_flux.world import ENTITIES, RELATIONS, STYLES

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
_ENTITY_PROMPTS = (
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
_STYLE_PROMPTS = (
    "an art in the style of {}",
    "a picture in the style of {}",
    "a dog in the style of {}",
    "a castle in the style of {}",
    "a photo of an apple in {} style",
    "a bicycle in {} style",
)

# As they stand between two things, and how else that may be said.
_RELATIONS = {
    "left of": ("left of", ("to the left side of", "leftward of")),
    "right of": ("right of", ("to the right side of", "rightward of")),
    "above": ("above", ("over",)),
    "below": ("below", ("under", "beneath")),
    "in": ("in", ("inside",)),
    "on": ("on", ("on top of", "atop")),
    "behind": ("behind", ("at the back of", "in back of")),
    "amidst": ("amidst", ("among", "surrounded by")),
    "back to back": ("back to back with", ("back-to-back with",)),
    "hugging close": ("hugging close to", ("embracing", "cuddling")),
}
_RELATION_PROMPTS = (
    "a dog {} french fries",
    "a castle {} a star",
    "a photo of an apple {} a crown",
    "a frog {} a bicycle",
    "an emoji of a balloon {} a shoe",
    "a fish {} a globe",
)


def _entity(name: str) -> dict[str, Any]:
    beside, near = _ENTITIES[name]
    return {
        "concept": name,
        "prompts": (*_ENTITY_PROMPTS, f"a {{}} and a {beside}"),
        "synonyms": next(entity.synonyms for entity in ENTITIES if entity.name == name),
        "irrelevant": (*(word for word in _FAR if word != name), *near),
        "upper": {"prompts": PICTURES},
        "evaluation": {"templates": ("a photo of a {}", "a {}", "a picture of a {}")},
    }


def _style(name: str) -> dict[str, Any]:
    others = tuple(style for style in STYLES if style != name)
    shown = [f"{thing} in the style of {style}" for thing, style in zip(PICTURES, cycle(others))]
    return {
        "concept": name,
        "prompts": _STYLE_PROMPTS,
        "synonyms": _STYLES[name],
        "irrelevant": others,
        "upper": {"prompts": tuple(shown)},
        "evaluation": {
            "templates": tuple(
                f"a {thing} in the style of {{}}" for thing in ("cat", "car", "house", "banana")
            )
        },
    }


def _relation(name: str) -> dict[str, Any]:
    others = tuple(_RELATIONS[relation][0] for relation in RELATIONS if relation != name)
    pairs = zip(KEPT * 2, KEPT[5:] + KEPT[11:] + KEPT[:16], cycle(others))
    shown = [phrase(phrase("a {} ", a) + f"{between} a {{}}", b) for a, b, between in pairs]
    return {
        "concept": _RELATIONS[name][0],
        "prompts": _RELATION_PROMPTS,
        "synonyms": _RELATIONS[name][1],
        "irrelevant": others,
        "upper": {"prompts": tuple(shown)},
        "evaluation": {
            "templates": (
                "a cat {} jeans",
                "a rabbit {} a car",
                "a photo of a banana {} a house",
                "a horse {} grapes",
            ),
            "others": others,
        },
    }


CONCEPTS: Mapping[str, Mapping[str, Any]] = {
    **{name.replace(" ", "_"): _entity(name) for name in _ENTITIES},
    **{name: _style(name) for name in _STYLES},
    **{name.replace(" ", "_"): _relation(name) for name in _RELATIONS},
}
