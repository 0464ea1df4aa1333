"""Runs, as Python files that say what differs from the defaults."""

from typing import Any

from ml_collections import ConfigDict

from configs.suite import CONCEPTS, KEPT, SETTINGS
from erase.methods import METHODS
from erase.runs import configure, over
from flux_jax.lora import TEXT_QUERY_KEY

EMOJI = {
    "model": {"path": "models/emoji-flux"},
    "height": 64,
    "width": 64,
    "iterations": 300,
    "bank": {"shuffled": 0.5},
    "lower": {"attn": 5.0},
    "upper": {
        # As fast as the lower level: slower, it loses more of what should stay.
        "learning_rate": 1e-3,
        "lora": 10.0,
        "lora_target": "base",
        "pictures": len(KEPT),
    },
    "evaluation": {"judge": "models/emoji-flux/judge"},
}
# What styles and relations take besides. The values' projections go beyond the paper's adapter.
STRONG = {
    "batch_size": 4,
    "adapter": {"targets": (*TEXT_QUERY_KEY, "dual_blocks/attn/add_v_proj")},
    "lower": {"learning_rate": 3e-3},
    "upper": {"learning_rate": 3e-3},
}
# The best of four learning rates or ridges each, or of six, by H on validation prompts, see
# configs/studies.py:methods. Where their authors draw half a picture in every update to come to
# x_t, the frozen model's trajectories serve, as they do EraseAnything.
OTHERS = {
    "concept_ablation": {"concept_ablation": {"learning_rate": 3e-4}},
    "esd": {"esd": {"learning_rate": 3e-4, "trajectories": "teacher"}},
    "uce": {"uce": {"ridge": 50.0}},
    "mace": {"mace": {"learning_rate": 1e-4}},
    "eap": {"eap": {"learning_rate": 1e-3, "trajectories": "teacher"}},
    "meta_unlearning": {"meta_unlearning": {"learning_rate": 3e-4, "trajectories": "teacher"}},
    "attention_erasure": {},
}
# What a preset does not say: the model, its size and the judge.
PLACE = {name: EMOJI[name] for name in ("model", "height", "width", "evaluation")}


def emoji(*names: str, preset: str = "") -> ConfigDict:
    """Runs on the shipped small FLUX.

    Args:
        *names: concepts, see `configs.suite`; several train at once, with `STRONG`.
        preset: a name in `erase.presets` whose values take the place of those chosen here.
    """
    # What other methods lead a concept to is no preset's.
    own = {
        name: {part: v for part, v in SETTINGS[name].items() if not preset or part in METHODS}
        for name in names
    }
    each = {name: over(CONCEPTS[name], own[name]) for name in names}
    # Half strength is for relations that EraseAnything erases.
    whole = {"evaluation": {"strength": 1.0}}
    if len(names) == 1:
        common = PLACE if preset else {**EMOJI, **_by_method(whole)}
        return configure(preset, **over(common, each[names[0]]))
    common = {**over(EMOJI, STRONG), **_by_method({"each": dict.fromkeys(names, whole)})}
    return configure(preset, **(PLACE if preset else common), each=each)


def _by_method(more: dict[str, Any]) -> dict[str, Any]:
    """What other methods have instead, and something besides."""
    return {"by_method": {name: over(values, more) for name, values in OTHERS.items()}}
