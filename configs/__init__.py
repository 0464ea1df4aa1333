"""Runs, as Python files that say what differs from the defaults."""

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
# What a preset does not say: the model, its size and the judge.
PLACE = {name: EMOJI[name] for name in ("model", "height", "width", "evaluation")}


def emoji(*names: str, preset: str = "") -> ConfigDict:
    """Runs on the shipped small FLUX.

    Args:
        *names: concepts, see `configs.suite`; several train at once, with `STRONG`.
        preset: a name in `erase.presets` whose values take the place of those chosen here.
    """
    # What other methods lead a concept to is no preset's.
    left = METHODS if preset else SETTINGS[names[0]]
    own = {name: {k: v for k, v in SETTINGS[name].items() if k in left} for name in names}
    each = {name: over(CONCEPTS[name], own[name]) for name in names}
    if len(names) == 1:
        return configure(preset, **over(PLACE if preset else EMOJI, each[names[0]]))
    return configure(preset, **(PLACE if preset else over(EMOJI, STRONG)), each=each)
