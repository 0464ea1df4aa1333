"""Erases twenty entities that no setting was chosen on, each as three lines would.

    python -m erase.train --config configs/emoji_newcomer.py --workdir runs/emoji_newcomer

Each is `configure(concept=NAME, model={"path": "models/emoji-flux"})`, which is tested; they train
at once to save time. They were drawn from the 25 entities that nothing names in configs/suite.py,
in the sentences there or in the pictures that are held on to.
Cost: minutes on one GPU; on 2 CPU cores hours, most of them for the evaluation's pictures.
Expected: in the mean, 64 pictures a cell, Acc_e 99.8 % before and 0.2 % after, Acc_ir 100 and
99.8 %.

`--config configs/emoji_newcomer.py:validation` has twenty other entities, other noise and 32
pictures a cell: the model's settings for entities were chosen on these.
"""

import random

from ml_collections import ConfigDict

from configs.suite import CONCEPTS, SETTINGS, VALIDATION
from erase.runs import configure
from recipes.emoji_flux.world import ENTITIES

COUNT = 20


def strangers() -> list[str]:
    """Entities whose names stand nowhere in the suite."""
    said = repr((CONCEPTS, SETTINGS, VALIDATION))
    return [entity.name for entity in ENTITIES if entity.name not in said]


def newcomers() -> list[str]:
    """Twenty of them, in the model's order."""
    # A draw that can be made again, no secret.
    names = random.Random(0).sample(strangers(), COUNT)  # nosec B311
    return [entity.name for entity in ENTITIES if entity.name in names]


def others() -> list[str]:
    """Twenty entities that are none of `newcomers`, in alphabetical order."""
    rest = [entity.name for entity in ENTITIES if entity.name not in newcomers()]
    # As above.
    return sorted(random.Random(1).sample(rest, COUNT))  # nosec B311


def get_config(preset: str = "") -> ConfigDict:
    """The runs; after a colon a preset whose values they take instead, or "validation"."""
    chosen_on = preset == "validation"
    names = others() if chosen_on else newcomers()
    return configure(
        "" if chosen_on else preset,
        model={"path": "models/emoji-flux"},
        evaluation={"pictures": 32, "seed": 2_000_000} if chosen_on else {},
        each={name.replace(" ", "_"): {"concept": name} for name in names},
    )
