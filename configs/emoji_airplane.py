"""Erases "airplane" from the shipped small FLUX.

    python -m erase.train --config configs/emoji_airplane.py --workdir runs/emoji_airplane

Cost: minutes on 2 CPU cores, the evaluation's pictures included; no GPU needed.
Expected: at seeds 0 and 1, 64 pictures a cell, Acc_e 100 % before, 0 and 1.6 % after; Acc_g
100 %, 1.6 and 1.6 %; Acc_ir 100 %, 100 and 100 %.
"""

from ml_collections import ConfigDict

from configs import emoji


def get_config(preset: str = "") -> ConfigDict:
    """The run; `--config configs/emoji_airplane.py:paper` takes a preset's values instead."""
    return emoji("airplane", preset=preset)
