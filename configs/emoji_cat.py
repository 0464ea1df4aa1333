"""Erases "cat" from the shipped small FLUX.

    python -m erase.train --config configs/emoji_cat.py --workdir runs/emoji_cat

Cost: minutes on 2 CPU cores, the evaluation's pictures included; no GPU needed.
Expected: the judge finds the concept, under its own name and under its synonyms, in far fewer of
the pictures than before, and the other concepts about as often as before.
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
