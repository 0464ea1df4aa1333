"""Runs, as Python files that say what differs from the defaults."""

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
# The model, its size and the judge, which no preset says.
PLACE = {
    "model": {"path": PATH},
    "height": 64,
    "width": 64,
    "evaluation": {"judge": f"{PATH}/judge"},
}
EMOJI = merge_fields(PLACE, METHOD)
# The paper's layers, slower: the values that the measured runs of one entity have.
ALONE = {
    "adapter": {"targets": TEXT_QUERY_KEY},
    "lower": {"learning_rate": 1e-3},
    "upper": {"learning_rate": 1e-3},
}


def emoji(*names: str, preset: str = "") -> ConfigDict:
    """Runs on the shipped small FLUX, which brings what is not said here.

    Args:
        *names: concepts, see `configs.suite`; several train at once.
        preset: a name in `erase.runs.presets` whose values take the place of the model's.
    """
    each = {name: merge_fields(CONCEPTS[name], _of_methods(name)) for name in names}
    model = {"path": PATH}
    if len(names) == 1:
        run = each[names[0]]
        alone = not preset and run["concept"] in {entity.name for entity in ENTITIES}
        return configure(preset, model=model, **(merge_fields(ALONE, run) if alone else run))
    return configure(preset, model=model, each=each)


def _of_methods(name: str) -> dict[str, Any]:
    """What other methods lead a concept to."""
    return {part: values for part, values in SETTINGS[name].items() if part in METHODS}
