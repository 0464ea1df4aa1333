"""Settings of MACE; the method is in `erase.methods.mace`."""

from collections.abc import Iterator
from dataclasses import dataclass

from erase.config.fields import number
from erase.config.schema import AdamW, Config
from erase.methods.settings.base import MethodFields


@dataclass(frozen=True)
class Settings(AdamW):
    """Settings of MACE; those of the optimiser are inherited from `AdamW`.

    Attributes:
        stand_in: word that replaces the concept in g's sentences; by default the first irrelevant
            word.
        edit_rank: rank of the closed-form change.
        ridge: λ, relative to the mean of the diagonal of Σ fᵀf.
        region: share of the picture taken as the concept's region.
    """

    learning_rate: float = number(1e-5, above=0)
    weight_decay: float = number(0.0, least=0)
    stand_in: str = ""
    edit_rank: int = number(4, least=1)
    ridge: float = number(0.1, above=0)
    region: float = number(0.4, above=0, most=1)


def problems(config: Config) -> Iterator[str]:
    """Return conflicts between the fields, one line each."""
    word = config.method_settings(Settings).stand_in
    if not (word or config.irrelevant):
        yield 'mace.stand_in = "" and irrelevant = (): name a word to replace the concept'
    if word.casefold() in (each.casefold() for each in (config.concept, *config.synonyms)):
        yield f"mace.stand_in = {word!r} is the concept: name another word"


FIELDS = MethodFields(Settings, per_run=("stand_in",), problems=problems)
