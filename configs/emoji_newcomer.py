"""Erase twenty entities that no setting was tuned on, each with the defaults alone.

    python -m erase.train --config configs/emoji_newcomer.py --workdir runs/emoji_newcomer

Each run equals `configure(concept=NAME, model={"path": "models/emoji-flux"})`, which a test checks;
they train at once to save time. The entities are a random sample of the 25 that configs/suite.py
does not mention: neither its sentences nor the pictures to preserve.
Cost: minutes on one GPU; hours on 2 CPU cores, most of them for the evaluation's pictures.
Expected: on average, with 64 pictures per cell, Acc_e 99.8 % before and 0.2 % after, Acc_ir 100 %
before and 99.8 % after.

`--config configs/emoji_newcomer.py:validation` uses twenty other entities, other noise and 32
pictures per cell. The model's default settings for entities were chosen on these.
"""

import random

from ml_collections import ConfigDict

from configs.suite import CONCEPTS, SETTINGS, VALIDATION
from erase.runs import configure
from recipes.emoji_flux.world import ENTITIES

COUNT = 20


def strangers() -> list[str]:
    """Entities whose names do not appear in the suite."""
    said = repr((CONCEPTS, SETTINGS, VALIDATION))
    return [entity.name for entity in ENTITIES if entity.name not in said]


def newcomers() -> list[str]:
    """A random sample of twenty of these, in the model's order."""
    # Reproducible sampling; not used for security.
    names = random.Random(0).sample(strangers(), COUNT)  # nosec B311
    return [entity.name for entity in ENTITIES if entity.name in names]


def others() -> list[str]:
    """A random sample of twenty entities that are not in `newcomers`, in alphabetical order."""
    rest = [entity.name for entity in ENTITIES if entity.name not in newcomers()]
    # As above.
    return sorted(random.Random(1).sample(rest, COUNT))  # nosec B311


def get_config(preset: str = "") -> ConfigDict:
    """Return the runs; after a colon, a preset whose values they use, or "validation"."""
    chosen_on = preset == "validation"
    names = others() if chosen_on else newcomers()
    return configure(
        "" if chosen_on else preset,
        model={"path": "models/emoji-flux"},
        evaluation={"pictures": 32, "seed": 2_000_000} if chosen_on else {},
        each={name.replace(" ", "_"): {"concept": name} for name in names},
    )
