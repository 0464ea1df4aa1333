"""Runs, as Python files that say what differs from the defaults."""

from ml_collections import ConfigDict

from erase.config import configure


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
        iterations=600,
        bank={"shuffled": 0.5},
        lower={"attn": 5.0},
        evaluation={
            "judge": "models/emoji-flux/judge",
            "templates": ("a photo of a {}", "a {}", "a picture of a {}"),
        },
    )
