"""Erases "soccer ball" from the shipped small FLUX.

    python -m erase.train --config configs/emoji_soccer_ball.py --workdir runs/emoji_soccer_ball

Cost: minutes on 2 CPU cores, the evaluation's pictures included; no GPU needed.
Expected: the judge finds the concept, under its own name and under its synonyms, in far fewer of
the pictures than before, and the other concepts about as often as before.
"""

from ml_collections import ConfigDict

from erase.config import configure


def get_config() -> ConfigDict:
    """The run; see `erase.config.Config` for every field."""
    return configure(
        concept="soccer ball",
        prompts=(
            "a photo of a {}",
            "a {}",
            "a picture of a {}",
            "an image of a {} on a blue background",
            "an emoji of a {} in flat style",
            "a {} and a dog",
        ),
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
        model="models/emoji-flux",
        height=64,
        width=64,
        iterations=600,
        bank={"shuffled": 0.5},
        lower={"attn": 5.0},
        evaluation={
            "judge": "models/emoji-flux/judge",
            "templates": ("a photo of a {}", "a {}", "a picture of a {}"),
        },
    )
