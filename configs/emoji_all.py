"""Erases thirty concepts from the shipped small FLUX, each into an adapter of its own, at once.

    python -m erase.train --config configs/emoji_all.py --workdir runs/emoji_all

Expected: Acc_e, Acc_g and Acc_ir, 64 pictures a cell, on the validation split: entities 99.4,
99.7 and 100 % before, 0, 0 and 99.7 % after; styles 100, 45.3 and 100 %, then 2.7, 2.2 and 99.5 %;
relations 91.9, 70.5 and 95.5 %, then 0, 0 and 89.1 %. See RESULTS.md.
Cost: minutes on one GPU; on 2 CPU cores hours, most of them for the evaluation's pictures.
"""

from ml_collections import ConfigDict

from configs import emoji
from configs.suite import CONCEPTS


def get_config(preset: str = "") -> ConfigDict:
    """The runs; `--config configs/emoji_all.py:paper` takes a preset's values instead."""
    return emoji(*CONCEPTS, preset=preset)
