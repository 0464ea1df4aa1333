"""Erases "soccer ball" from the shipped small FLUX.

    python -m erase.train --config configs/emoji_soccer_ball.py --workdir runs/emoji_soccer_ball

Cost: minutes on 2 CPU cores, the evaluation's pictures included; no GPU needed.
Expected: at seeds 0 and 1, 64 pictures a cell, Acc_e 92.2 % before, 0 and 0 % after; Acc_g
95.3 %, 0 and 0 %; Acc_ir 100 %, 100 and 100 %.
"""

from ml_collections import ConfigDict

from configs import emoji


def get_config(preset: str = "") -> ConfigDict:
    """The run; `--config configs/emoji_soccer_ball.py:paper` takes a preset's values instead."""
    return emoji("soccer_ball", preset=preset)
