"""Runs, as Python files that say what differs from the defaults."""

from ml_collections import ConfigDict

from configs.suite import CONCEPTS, KEPT
from erase.config import configure, over

EMOJI = {
    "model": "models/emoji-flux",
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
# What a preset does not say: the model, its size and the judge.
PLACE = {name: EMOJI[name] for name in ("model", "height", "width", "evaluation")}


def emoji(*names: str, preset: str = "") -> ConfigDict:
    """Runs on the shipped small FLUX.

    Args:
        *names: concepts, see `configs.suite`; several train at once.
        preset: a name in `erase.presets` whose values take the place of the ones found here.
    """
    common = PLACE if preset else EMOJI
    if len(names) == 1:
        return configure(preset, **over(common, CONCEPTS[names[0]]))
    return configure(preset, **common, each={name: CONCEPTS[name] for name in names})
