"""Run configurations: Python files that set what differs from the defaults."""

from typing import Any

from ml_collections import ConfigDict

from configs.suite import CONCEPTS, SETTINGS
from erase.methods import METHODS
from erase.runs import configure, merge_fields
from flux_jax.settings import TEXT_QUERY_KEY
from recipes.emoji_flux.erasing import METHOD, OTHERS, STRONG
from recipes.emoji_flux.world import ENTITIES

__all__ = ["EMOJI", "OTHERS", "PLACE", "STRONG", "emoji"]

PATH = "models/emoji-flux"
# The model, its size and the judge; no preset sets these.
PLACE = {
    "model": {"path": PATH},
    "height": 64,
    "width": 64,
    "evaluation": {"judge": f"{PATH}/judge"},
}
EMOJI = merge_fields(PLACE, METHOD)
# The paper's layers and a lower learning rate, as in the measured runs of a single entity.
ALONE = {
    "adapter": {"targets": TEXT_QUERY_KEY},
    "lower": {"learning_rate": 1e-3},
    "upper": {"learning_rate": 1e-3},
}


def emoji(*names: str, preset: str = "") -> ConfigDict:
    """Configure runs on the shipped small FLUX; unset fields take the model's own defaults.

    Args:
        *names: keys of `configs.suite.CONCEPTS`; several concepts train at once.
        preset: a name in `erase.runs.presets`; its values replace the model's.
    """
    each = {name: merge_fields(CONCEPTS[name], _of_methods(name)) for name in names}
    model = {"path": PATH}
    if len(names) == 1:
        run = each[names[0]]
        alone = not preset and run["concept"] in {entity.name for entity in ENTITIES}
        return configure(preset, model=model, **(merge_fields(ALONE, run) if alone else run))
    return configure(preset, model=model, each=each)


def _of_methods(name: str) -> dict[str, Any]:
    """The fields of `SETTINGS` that belong to other methods, for example the anchor concept."""
    return {part: values for part, values in SETTINGS[name].items() if part in METHODS}
