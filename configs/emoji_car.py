"""Erase "car" from the shipped small FLUX.

    python -m erase.train --config configs/emoji_car.py --workdir runs/emoji_car

Cost: minutes on 2 CPU cores, including the evaluation's pictures; no GPU needed.
Expected: with 64 pictures per cell, at seeds 0 and 1, Acc_e 100 % before, 0 and 0 % after; Acc_g
100 % before, 0 and 0 % after; Acc_ir 100 % before, 100 and 100 % after.
"""

from ml_collections import ConfigDict

from configs import emoji


def get_config(preset: str = "") -> ConfigDict:
    """Return the run; `--config configs/emoji_car.py:paper` uses a preset's values instead."""
    return emoji("car", preset=preset)
