"""Settings of MACE; `erase.methods.mace` is the method."""

from collections.abc import Iterator
from dataclasses import dataclass

from erase.config.fields import number
from erase.config.schema import AdamW, Config
from erase.methods.settings.base import MethodFields


@dataclass(frozen=True)
class Settings(AdamW):
    """MACE's; its optimiser's settings are `AdamW`'s.

    Attributes:
        stand_in: word in the concept's place, for g; by default the first of the irrelevant words.
        edit_rank: of the closed form's change.
        ridge: λ, in means of the diagonal of Σ fᵀf.
        region: share of the picture that is taken for the concept's.
    """

    learning_rate: float = number(1e-5, above=0)
    weight_decay: float = number(0.0, least=0)
    stand_in: str = ""
    edit_rank: int = number(4, least=1)
    ridge: float = number(0.1, above=0)
    region: float = number(0.4, above=0, most=1)


def problems(config: Config) -> Iterator[str]:
    """What is wrong between the fields, a line each."""
    word = config.method_settings(Settings).stand_in
    if not (word or config.irrelevant):
        yield 'mace.stand_in = "" and irrelevant = (): name what comes in the concept\'s place'
    if word.casefold() in (each.casefold() for each in (config.concept, *config.synonyms)):
        yield f"mace.stand_in = {word!r} is the concept: name what comes in its place"


FIELDS = MethodFields(Settings, per_run=("stand_in",), problems=problems)
