"""Erases "cat" from the shipped small FLUX.

    python -m erase.train --config configs/emoji_cat.py --workdir runs/emoji_cat

Cost: minutes on 2 CPU cores, the evaluation's pictures included; no GPU needed.
Expected: at seeds 0 and 1, 64 pictures a cell, Acc_e 100 % before, 0 and 3.1 % after; Acc_g
100 %, 0 and 1.6 %; Acc_ir 100 %, 100 and 100 %.
"""

from ml_collections import ConfigDict

from configs import emoji


def get_config() -> ConfigDict:
    """The run; see `erase.config.Config` for every field."""
    return emoji(
        concept="cat",
        beside="book",
        synonyms=("kitty", "feline", "pussycat"),
        irrelevant=(
            "banana",
            "castle",
            "bus",
            "umbrella",
            "guitar",
            "dog",
            "rabbit",
            "horse",
            "panda",
        ),
    )
