"""Erase "soccer ball" from the shipped small FLUX.

    python -m erase.train --config configs/emoji_soccer_ball.py --workdir runs/emoji_soccer_ball

Cost: minutes on 2 CPU cores, including the evaluation's pictures; no GPU needed.
Expected: with 64 pictures per cell, at seeds 0 and 1, Acc_e 92.2 % before, 0 and 0 % after; Acc_g
95.3 % before, 0 and 0 % after; Acc_ir 100 % before, 100 and 100 % after.
"""

from ml_collections import ConfigDict

from configs import emoji


def get_config(preset: str = "") -> ConfigDict:
    """Return the run; `--config configs/emoji_soccer_ball.py:paper` uses a preset's values."""
    return emoji("soccer_ball", preset=preset)
