"""Erases "soccer ball" from the shipped small FLUX.

    python -m erase.train --config configs/emoji_soccer_ball.py --workdir runs/emoji_soccer_ball

Cost: minutes on 2 CPU cores, the evaluation's pictures included; no GPU needed.
Expected: at seeds 0 and 1, 64 pictures a cell, Acc_e 93.8 % before, 0 and 0 % after; Acc_g
95.3 %, 0 and 0 %; Acc_ir 100 %, 100 and 98.4 %.
"""

from ml_collections import ConfigDict

from configs import emoji


def get_config() -> ConfigDict:
    """The run; see `erase.config.Config` for every field."""
    return emoji(
        concept="soccer ball",
        beside="dog",
        synonyms=("soccerball", "association football", "futbol"),
        irrelevant=(
            "banana",
            "castle",
            "penguin",
            "umbrella",
            "guitar",
            "volleyball",
            "basketball",
            "apple",
            "pool ball",
        ),
    )
