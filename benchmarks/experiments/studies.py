"""Studies on the shipped small FLUX; RESULTS.md has their results, `study` beside this runs them.

Settings are chosen on the validation's prompts and seeds, so that those of the evaluation are
unused until the method is fixed.
"""

import functools
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from types import MappingProxyType
from typing import Any

from benchmarks.experiments.study import Study
from configs import ALONE, EMOJI, PLACE, STRONG, people
from configs.emoji_newcomer import get_config
from configs.flux.celebrity import LOSSES, LOWER, TITLES, UPPER, without
from configs.suite import CONCEPTS, SETTINGS, VALIDATION
from erase.methods import METHODS
from erase.runs import load_runs, merge_fields
from erase.runs.presets import PRESETS
from flux_jax.lora import TEXT_QUERY_KEY

# Pictures and prompts per batch, sized for a GPU.
LARGE = {"evaluation": {"batch": 192}, "bank": {"batch": 64}}
# Few, so that the effect of a variant is still visible.
SHORT = {"iterations": 100}
STOP = {"iterations": 600, "early_stop": {"every": 25}}
# Trained methods on the frozen model's trajectories, which makes them as fast as the others: the
# authors' procedures run half of the sampling steps in every update to reach x_t.
TEACHER = {"trajectories": "teacher"}
TRAINED = {
    "concept_ablation": {},
    "esd": TEACHER,
    "mace": {},
    "eap": TEACHER,
    "meta_unlearning": TEACHER,
}
# The frozen model's velocities on its trajectories are computed before training.
STORED = {"bank": {"teacher": "stored"}}
# Ten of the thirty concepts, of all kinds.
THIRD = tuple(CONCEPTS)[::3]


def _concepts(
    *changes: Mapping[str, Any],
    names: Iterable[str] = CONCEPTS,
    split: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
) -> dict[str, Any]:
    """Concepts as in `configs.emoji_all`, with some changes."""
    return {
        name: functools.reduce(
            merge_fields,
            (EMOJI, STRONG, LARGE, CONCEPTS[name], SETTINGS[name], split.get(name, {}), *changes),
        )
        for name in names
    }


def _entities() -> dict[str, Any]:
    """The twenty validation entities of `configs.emoji_newcomer`, with the model's defaults."""
    runs = load_runs(get_config("validation"))
    return {name: merge_fields(asdict(run), LARGE) for name, run in runs.items()}


def _rate(rate: float) -> dict[str, dict[str, float]]:
    """Learning rate of both levels."""
    return {level: {"learning_rate": rate} for level in ("lower", "upper")}


def _by(method: str, **own: Any) -> dict[str, Any]:
    """Another method with its own settings, at full strength."""
    return {"method": method, method: own, "evaluation": {"strength": 1.0}}


def _without(*losses: str) -> dict[str, dict[str, float]]:
    """Weights of losses set to 0."""
    levels = {"lower": ("esd", "attn"), "upper": ("lora", "rsc")}
    return {
        level: {loss: 0.0 for loss in names if loss in losses} for level, names in levels.items()
    }


STUDIES = {
    "seeds": Study(
        question="How much do seeds of training matter?",
        concepts=_concepts(),
        variants={"as configured": {}},
        seeds=(0, 1, 2),
    ),
    "settings": Study(
        question="How large an adapter, how much of it, and when does training stop?",
        concepts=_concepts(split=VALIDATION),
        variants={
            "as configured": {},
            **{
                f"strength {strength}": {"evaluation": {"strength": strength}}
                for strength in (1.0, 0.7, 0.5, 0.35)
            },
            "early stop": STOP,
            "early stop, queries and keys alone": STOP | {"adapter": {"targets": TEXT_QUERY_KEY}},
            "early stop, rank 16": STOP | {"adapter": {"rank": 16}},
        },
        seeds=(0,),
    ),
    "entities": Study(
        question="Which layers and which learning rate does an entity take?",
        concepts=_entities(),
        variants={
            "queries and keys, 1e-3": ALONE,
            "queries and keys, 1e-3, 600 iterations": ALONE | {"iterations": 600},
            "values too, 1e-3": _rate(1e-3),
            "values too, 2e-3": _rate(2e-3),
            "values too, 3e-3": {},
            "values too, 3e-3, batches of 4": {"batch_size": 4},
        },
        seeds=(0,),
    ),
    "strength": Study(
        question="How much does an adapter erase and keep at each strength?",
        concepts=_concepts(),
        variants={
            str(strength): {"evaluation": {"strength": strength}}
            for strength in (0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
        },
        seeds=(0,),
    ),
    "curve": Study(
        question="How many iterations does erasing take?",
        concepts=_concepts(split=VALIDATION),
        variants={str(count): {"iterations": count} for count in (10, 25, 50, 100, 200, 400)},
        seeds=(0,),
    ),
    "choices": Study(
        question="What does each choice within the method change?",
        concepts=_concepts(SHORT, names=THIRD, split=VALIDATION),
        variants={
            "as configured": {},
            "trajectories of the student": {"lower": {"trajectories": "student"}},
            "L_attn as released": {"lower": {"attn_form": "released", "attn": 0.01}},
            "L_rsc literal": {"upper": {"rsc_form": "literal"}},
            "L_rsc as released": {"upper": {"rsc_form": "released", "blocks": "last"}},
            "L_rsc, last block": {"upper": {"blocks": "last"}},
            "L_lora on the concept's pictures": {"upper": {"prompts": ()}},
            "L_lora without the concept": {"upper": {"prompts": (), "without_concept": True}},
            "L_lora towards noise": {"upper": {"lora_target": "noise"}},
            "joint": {"alternation": "joint"},
            "adaptive": {"alternation": "adaptive"},
            "rank 4": {"adapter": {"rank": 4}},
            "rank 16": {"adapter": {"rank": 16}},
            "queries and keys alone": {"adapter": {"targets": TEXT_QUERY_KEY}},
            "the empty prompt as stand-in": {"lower": {"stand_in": None}},
        },
        seeds=(0, 1, 2),
    ),
    "methods": Study(
        question="Which learning rate (or ridge) suits each method, all else equal?",
        concepts=_concepts({"iterations": 300}, names=THIRD, split=VALIDATION),
        variants={
            "EraseAnything": {"evaluation": {"strength": 1.0}},
            **{
                f"{METHODS[name].title}, {rate:g}": _by(name, learning_rate=rate, **more)
                for rate in (1e-4, 3e-4, 1e-3, 3e-3)
                for name, more in TRAINED.items()
            },
            # The best of four was the smallest, so two smaller ones were added.
            **{f"MACE, {rate:g}": _by("mace", learning_rate=rate) for rate in (3e-5, 1e-5)},
            # Here it was the largest.
            **{
                f"UCE, {ridge:g}": _by("uce", ridge=ridge)
                for ridge in (0.5, 2.0, 10.0, 50.0, 250.0, 1000.0)
            },
        },
        seeds=(0,),
    ),
    "losses": Study(
        question="What does each loss do?",
        concepts=_concepts(SHORT, names=THIRD),
        variants={
            "esd + attn": _without("lora", "rsc"),
            "esd + lora": _without("attn", "rsc"),
            "esd + rsc": _without("attn", "lora"),
            "attn + rsc": _without("esd", "lora"),
            "attn + lora + rsc": _without("esd"),
            "all four": {},
        },
        seeds=(0, 1, 2),
    ),
    # The paper's Table 4, on the model of recipes/people.
    "persons": Study(
        question="What does each loss do where a person is erased?",
        concepts={
            slug: merge_fields(
                merge_fields(people.fields(slug), LARGE),
                {"evaluation": {"pictures": 40, "batch": 120}},
            )
            for slug in people.BY_SLUG
        },
        variants={
            TITLES[row]: {"lower": without(LOWER, row), "upper": without(UPPER, row)}
            for row in LOSSES
        },
        seeds=(0, 1, 2),
    ),
    "once": Study(
        question="Do noises that are sampled once, or features of the frozen model, erase as well?",
        concepts=_concepts(names=THIRD, split=VALIDATION),
        variants={
            "all computed in each update": {"bank": {"teacher": "computed"}},
            # The same to rounding.
            "stored velocities": STORED,
            "frozen features": STORED | {"upper": {"rsc_features": "frozen"}},
            "4 noises": STORED | {"upper": {"noises": 4}},
            "16 noises": STORED | {"upper": {"noises": 16}},
            "4 noises, frozen features": STORED
            | {"upper": {"noises": 4, "rsc_features": "frozen"}},
            "16 noises, frozen features": STORED
            | {"upper": {"noises": 16, "rsc_features": "frozen"}},
        },
        seeds=(0, 1, 2),
    ),
    "presets": Study(
        question="What do the paper's and the authors' own settings do?",
        concepts={
            name: functools.reduce(merge_fields, (PLACE, LARGE, CONCEPTS[name], SETTINGS[name]))
            for name in CONCEPTS
        },
        variants={"ours": merge_fields(EMOJI, STRONG), **PRESETS},
        seeds=(0,),
    ),
}
