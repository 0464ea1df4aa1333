"""`erase.json` of the shipped folder: the words that the model knows and settings for erasing.

The values were chosen by the studies in benchmarks/experiments/studies.py.
"""

from collections.abc import Mapping
from itertools import cycle
from pathlib import Path
from typing import Any, Literal

from erase.config.model_file import FILE, Keep, Kind, Known, Thing
from erase.data.words.templates import SLOT, phrase
from flux_jax.settings import TEXT_QUERY_KEY
from recipes.emoji_flux.world import ENTITIES, INVERSE, RELATIONS, STYLES

# Every third entity. Pictures of these are preserved, and sentences about styles and relations name
# them. The other two thirds appear in evaluations only.
# fmt: off
KEPT = (
    "apple", "watermelon", "cherry", "mushroom", "cake", "coffee", "french fries", "volleyball",
    "dog", "pig", "frog", "fish", "crab", "bee", "snail", "bicycle", "sailboat", "tower",
    "castle", "shoe", "crown", "key", "light bulb", "balloon", "pumpkin", "star", "lightning",
    "explosion", "cactus", "globe", "ghost", "handshake",
)
# fmt: on
PICTURES = tuple(phrase("a photo of a {}", name) for name in KEPT)
ENTITY_PROMPTS = (
    "a photo of a {}",
    "a {}",
    "a picture of a {}",
    "an image of a {} on a blue background",
    "an emoji of a {} in flat style",
)
# Variants of each style's name that users may write.
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
# Many things; with few, what is learnt about a style stays with those few.
_IN_STYLE = (
    ("a {}", " in the style of {}"),
    ("a photo of a {}", " in {} style"),
    ("a {}", " in {} style"),
)
# Each relation as written between two things, its synonyms, and the relation to draw instead. Two
# things joined by "and" are drawn beside or above each other, so "and" cannot replace those.
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
# The wording of a relation between two things.
PHRASES = {relation: between for relation, (between, _, _) in _RELATIONS.items()}

METHOD: Mapping[str, Any] = {
    "iterations": 300,
    "bank": {"shuffled": 0.5},
    "lower": {"attn": 5.0},
    "upper": {
        # As high as the lower level's: a lower rate preserves less.
        "learning_rate": 1e-3,
        "lora": 10.0,
        "lora_target": "base",
        "pictures": len(KEPT),
    },
}
# Additional settings of each kind. Value projections go beyond the paper's adapter; with the
# paper's layers alone, at a rate of 1e-3, a tenth of the pictures of twenty other entities still
# showed the concept.
FAST: Mapping[str, Any] = {
    "adapter": {"targets": (*TEXT_QUERY_KEY, "dual_blocks/attn/add_v_proj")},
    "lower": {"learning_rate": 3e-3},
    "upper": {"learning_rate": 3e-3},
}
# Styles and relations; for entities, a larger batch left more of one in twenty ("heart").
STRONG: Mapping[str, Any] = {**FAST, "batch_size": 4}
# The best of four learning rates or ridges (for some methods six) by H on validation prompts, see
# benchmarks/experiments/studies.py:methods. Where the authors run half of the sampling steps in
# every update to reach x_t, the frozen model's trajectories are used, as in EraseAnything.
OTHERS: Mapping[str, Mapping[str, Any]] = {
    "concept_ablation": {"concept_ablation": {"learning_rate": 3e-4}},
    "esd": {"esd": {"learning_rate": 3e-4, "trajectories": "teacher"}},
    "uce": {"uce": {"ridge": 50.0}},
    "mace": {"mace": {"learning_rate": 1e-4}},
    "eap": {"eap": {"learning_rate": 1e-3, "trajectories": "teacher"}},
    "meta_unlearning": {"meta_unlearning": {"learning_rate": 3e-4, "trajectories": "teacher"}},
    "attention_erasure": {},
    # Of 3e-4, 1e-3 and 3e-3, on one concept only, with 100 iterations; 1e-3 is GEM's authors' own.
    "gem": {},
    "eraseflow": {"eraseflow": {"learning_rate": 1e-3, "points": 8}},
}
# At half strength a relation's adapter still erases and preserves other relations better. Full
# strength is for the methods other than EraseAnything.
_WHOLE = {"evaluation": {"strength": 1.0}}
_KINDS: dict[Literal["entity", "style", "relation"], Kind] = {
    "entity": Kind(
        prompts=ENTITY_PROMPTS,
        beside="and a {}",
        templates=("a photo of a {}", "a {}", "a picture of a {}"),
        keep=Keep(templates=("a photo of a {}",), things=KEPT),
        shared=dict(FAST),
    ),
    "style": Kind(
        prompts=(
            "an art in the style of {}",
            "a picture in the style of {}",
            *(phrase(thing, name) + style for (thing, style), name in zip(cycle(_IN_STYLE), KEPT)),
        ),
        templates=tuple(
            phrase("a {}", thing) + " in the style of {}"
            for thing in ("penguin", "guitar", "lemon", "elephant")
        ),
        keep=Keep(templates=tuple(f"{picture} in the style of {{}}" for picture in PICTURES)),
        shared=dict(STRONG),
    ),
    "relation": Kind(
        prompts=tuple(
            phrase("a {} ", a) + SLOT + phrase(" a {}", b)
            for a, b in zip(KEPT, KEPT[16:] + KEPT[:16], strict=True)
        ),
        templates=(
            "a penguin {} a guitar",
            "an elephant {} a lemon",
            "a photo of a monkey {} a camera",
            "a truck {} a sunflower",
        ),
        every_other=True,
        keep=Keep(
            templates=tuple(
                phrase("a {} ", a) + SLOT + phrase(" a {}", b)
                for a, b in zip(KEPT, KEPT[5:] + KEPT[:5], strict=True)
            )
        ),
        shared=dict(STRONG),
        # In another order a sentence has another relation.
        own={"bank": {"shuffled": 0.0}, "evaluation": {"strength": 0.5}},
    ),
}


def _things() -> tuple[Thing, ...]:
    entities = [
        Thing(name=each.name, kind="entity", group=each.kind, words=each.synonyms)
        for each in ENTITIES
    ]
    styles = [
        Thing(
            name=name,
            kind="style",
            words=_STYLES[name],
            # A style other than the erased one, or half of the pictures keep the style.
            instead="sticker" if name == "flat" else "flat",
        )
        for name in STYLES
    ]
    relations = [
        Thing(
            name=name,
            kind="relation",
            written=between if between != name else "",
            words=words,
            converse=INVERSE.get(name, ""),
            instead=instead,
        )
        for name, (between, words, instead) in _RELATIONS.items()
    ]
    return (*entities, *styles, *relations)


KNOWN = Known(
    place={"height": 64, "width": 64, "evaluation": {"judge": "judge"}},
    method={
        **METHOD,
        "by_method": {name: {**values, **_WHOLE} for name, values in OTHERS.items()},
    },
    kinds=_KINDS,
    things=_things(),
)
assert tuple(_RELATIONS) == RELATIONS


def write_known(out: Path) -> None:
    """Write `erase.json` into the pipeline's folder."""
    from erase.runtime.files import write

    write(out / FILE, KNOWN.model_dump_json(indent=1, exclude_defaults=True) + "\n")
