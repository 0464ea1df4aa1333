"""Erase a hundred concepts from the shipped small FLUX: 84 entities, 8 styles, 8 relations.

    python -m erase.train --config configs/emoji_hundred.py --workdir runs/emoji_hundred

trains one adapter per concept, which `benchmarks.experiments.compositions` combines into one. The
concepts that are not erased measure what is preserved: 16 entities, half of which never appear in
training, 2 styles and 2 relations.
Expected: adapters without an evaluation; RESULTS.md has the results of their compositions.
Cost: minutes on one GPU; many hours on 2 CPU cores.
"""

import random
from collections.abc import Collection, Mapping
from itertools import cycle, permutations
from typing import Any

from ml_collections import ConfigDict

from configs import EMOJI, PLACE, STRONG
from configs.suite import CONCEPTS, ENTITY_PROMPTS, PHRASES, PICTURES, SETTINGS
from erase.data.words.templates import phrase
from erase.runs import configure, merge_fields
from recipes.emoji_flux.world import ENTITIES, RELATIONS, STYLES

# Entities that appear in training and are preserved.
SHOWN = ("fish", "key", "balloon", "star", "dog", "cake", "castle", "bicycle")
# Entities in the prompts that evaluate styles and relations; they never appear in training.
UNSEEN = ("penguin", "guitar", "elephant", "lemon", "monkey", "camera", "truck", "sunflower")
# Number of sentences to preserve for each relation.
PAIRS = 24
STYLES_LEFT, RELATIONS_LEFT = ("flat", "sticker"), ("in", "on")

# Synonyms for the entities that have none in `world`.
_OTHER_WORDS = {
    "butterfly": ("lepidopteran",),
    "trophy": ("prize cup",),
    "bomb": ("explosive",),
    "sun": ("sunshine",),
    "rainbow": ("arc of colors",),
    "cloud": ("nimbus",),
    "rose": ("rosebud",),
    "princess": ("royal lady",),
}


def _entity(name: str, synonyms: tuple[str, ...], beside: str) -> dict[str, Any]:
    return {
        "concept": name,
        "prompts": (*ENTITY_PROMPTS, f"a {{}} and a {beside}"),
        "synonyms": synonyms or _OTHER_WORDS[name],
        "irrelevant": SHOWN,
        "upper": {"prompts": tuple(p for p in PICTURES if p != phrase("a photo of a {}", name))},
        "evaluation": {"templates": ("a photo of a {}", "a {}", "a picture of a {}")},
    }


def _names(labels: tuple[str, ...], left: tuple[str, ...]) -> list[str]:
    return [label.replace(" ", "_") for label in labels if label not in left]


_erased = [entity for entity in ENTITIES if entity.name not in (*SHOWN, *UNSEEN)]
_others = (*_names(STYLES, STYLES_LEFT), *_names(RELATIONS, RELATIONS_LEFT))
RUNS: Mapping[str, Mapping[str, Any]] = {
    **{
        entity.name.replace(" ", "_"): _entity(entity.name, entity.synonyms, beside)
        for entity, beside in zip(_erased, cycle(SHOWN))
    },
    **{name: merge_fields(CONCEPTS[name], SETTINGS[name]) for name in _others},
}

# Validation, for choosing settings: other noise and, for styles and relations, entities in `SHOWN`.
_VALIDATION_TEMPLATES = {
    **dict.fromkeys(
        _names(STYLES, STYLES_LEFT),
        tuple(phrase("a {}", thing) + " in the style of {}" for thing in SHOWN[4:]),
    ),
    **dict.fromkeys(
        _names(RELATIONS, RELATIONS_LEFT),
        tuple(
            phrase("a {} ", a) + "{} " + phrase("a {}", b)
            for a, b in zip(SHOWN[:4], SHOWN[4:], strict=True)
        ),
    ),
}
VALIDATION: Mapping[str, Mapping[str, Any]] = {
    name: {
        "evaluation": {"seed": 2_000_000}
        | ({"templates": _VALIDATION_TEMPLATES[name]} if name in _VALIDATION_TEMPLATES else {})
    }
    for name in RUNS
}


def keep_sentences(erased: Collection[str]) -> list[str]:
    """Sentences about what must be preserved when these labels are erased; no evaluation prompts.

    Args:
        erased: labels of entities, styles and relations.
    """
    things = [name for name in SHOWN if name not in erased]
    entities = [entity.name for entity in ENTITIES if entity.name not in erased]
    styles = [style for style in STYLES if style not in erased]
    relations = [relation for relation in RELATIONS if relation not in erased]
    # Reproducible sampling; not used for security.
    rng = random.Random(0)  # nosec B311
    # Evaluation prompts relate two entities of `UNSEEN`, so such pairs are excluded.
    pairs = [pair for pair in permutations(entities, 2) if not {*pair} <= {*UNSEEN}]
    return [
        *(phrase(prompt, name) for name in entities for prompt in ENTITY_PROMPTS[3:]),
        *(phrase("a {} and", name) + phrase(" a {}", b) for name, b in zip(entities, cycle(SHOWN))),
        *(phrase("a {}", a) + f" in the style of {style}" for style in styles for a in things),
        *(
            phrase("a {} ", a) + PHRASES[relation] + phrase(" a {}", b)
            for relation in relations
            for a, b in rng.sample(pairs, PAIRS)
        ),
    ]


def get_config(preset: str = "") -> ConfigDict:
    """Return the runs; `--config configs/emoji_hundred.py:paper` uses a preset's values instead."""
    return _configured(RUNS, preset)


def validation() -> ConfigDict:
    """Return the runs with the validation pictures, for choosing settings."""
    return _configured({name: merge_fields(run, VALIDATION[name]) for name, run in RUNS.items()})


def _configured(each: Mapping[str, Mapping[str, Any]], preset: str = "") -> ConfigDict:
    # No pictures of single adapters: only compositions are evaluated.
    small = {"evaluation": {"pictures": 0, "batch": 192}, "bank": {"batch": 64}}
    shared = PLACE if preset else merge_fields(EMOJI, STRONG)
    return configure(preset, **merge_fields(shared, small), each=dict(each))
