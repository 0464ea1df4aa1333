"""Erases thirty concepts from the shipped small FLUX, each into an adapter of its own, at once.

    python -m erase.train --config configs/emoji_all.py --workdir runs/emoji_all

Expected: Acc_e, Acc_g and Acc_ir, 64 pictures a cell: entities 99.4, 99.5 and 100 % before, 0, 0
and 99.1 % after; styles 100, 48.3 and 100 %, then 0.5, 5.5 and 98.8 %; relations, at half strength,
90.9, 68.8 and 88.3 %, then 8.6, 6.1 and 85.5 %. See RESULTS.md.
Cost: minutes on one GPU; on 2 CPU cores hours, most of them for the evaluation's pictures.
"""

from ml_collections import ConfigDict

from configs import emoji
from configs.suite import CONCEPTS


def get_config(preset: str = "") -> ConfigDict:
    """The runs; `--config configs/emoji_all.py:paper` takes a preset's values instead."""
    return emoji(*CONCEPTS, preset=preset)
