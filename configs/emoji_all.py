"""Erase thirty concepts from the shipped small FLUX at once, with one adapter per concept.

    python -m erase.train --config configs/emoji_all.py --workdir runs/emoji_all

Expected: Acc_e, Acc_g and Acc_ir with 64 pictures per cell: entities 99.4, 99.5 and 100 % before,
0, 0 and 99.1 % after; styles 100, 48.3 and 100 % before, 0.5, 5.5 and 98.8 % after; relations, at
half strength, 90.9, 68.8 and 88.3 % before, 8.6, 6.1 and 85.5 % after. See RESULTS.md.
Cost: minutes on one GPU; hours on 2 CPU cores, most of them for the evaluation's pictures.
"""

from ml_collections import ConfigDict

from configs import emoji
from configs.suite import CONCEPTS


def get_config(preset: str = "") -> ConfigDict:
    """Return the runs; `--config configs/emoji_all.py:paper` uses a preset's values instead."""
    return emoji(*CONCEPTS, preset=preset)
