"""Runs, as Python files that say what differs from the defaults."""

from ml_collections import ConfigDict

from erase.config import configure
from erase.prompts import phrase

# Every third entity that no configuration here erases. Pictures of these are held on to; the
# other two thirds are seen by the evaluation alone.
# fmt: off
KEPT = (
    "apple", "watermelon", "cherry", "mushroom", "cake", "coffee", "french fries", "volleyball",
    "dog", "pig", "frog", "fish", "crab", "bee", "snail", "bicycle", "sailboat", "tower",
    "castle", "shoe", "crown", "key", "light bulb", "balloon", "pumpkin", "star", "lightning",
    "explosion", "cactus", "globe", "ghost", "handshake",
)
# fmt: on


def emoji(
    concept: str, beside: str, synonyms: tuple[str, ...], irrelevant: tuple[str, ...]
) -> ConfigDict:
    """What the runs on the shipped small FLUX have in common.

    Args:
        concept: an entity that the model draws.
        beside: another entity, to stand beside it in one of the sentences.
        synonyms: other words for the concept.
        irrelevant: entities that should stay, near and far ones.
    """
    return configure(
        concept=concept,
        prompts=(
            "a photo of a {}",
            "a {}",
            "a picture of a {}",
            "an image of a {} on a blue background",
            "an emoji of a {} in flat style",
            f"a {{}} and a {beside}",
        ),
        synonyms=synonyms,
        irrelevant=irrelevant,
        model="models/emoji-flux",
        height=64,
        width=64,
        iterations=300,
        bank={"shuffled": 0.5},
        lower={"attn": 5.0},
        upper={
            # As fast as the lower level: slower, it loses more of what should stay.
            "learning_rate": 1e-3,
            "lora": 10.0,
            "lora_target": "base",
            "prompts": tuple(phrase("a photo of a {}", name) for name in KEPT),
            "pictures": len(KEPT),
        },
        evaluation={
            "judge": "models/emoji-flux/judge",
            "templates": ("a photo of a {}", "a {}", "a picture of a {}"),
        },
    )
