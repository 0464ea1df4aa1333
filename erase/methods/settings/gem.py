"""Settings of GEM; the method is in `erase.methods.later.gem`."""

from collections.abc import Iterator
from dataclasses import dataclass

from erase.config.fields import number
from erase.config.schema import AdamW, Config
from erase.methods.settings.base import MethodFields


@dataclass(frozen=True)
class Settings(AdamW):
    """Settings of GEM; those of the optimiser are inherited from `AdamW`.

    Attributes:
        anchor: word that replaces the concept in the sentence whose velocity attracts; by default
            the first irrelevant word.
        eta: η, weight of the distance to the concept's own velocity.
        gamma: γ, factor of the loss.
        early: number of denoising steps, counted from the noise, that are trained on.
        points: number of these steps on each trajectory, sampled anew in each update.
    """

    anchor: str = ""
    eta: float = number(1.0, least=0)
    gamma: float = number(100.0, above=0)
    early: int = number(10, least=1)
    points: int = number(6, least=1)


def problems(config: Config) -> Iterator[str]:
    """Return conflicts between the fields, one line each."""
    settings = config.method_settings(Settings)
    anchor = settings.anchor.casefold()
    if not (anchor or config.irrelevant):
        yield 'gem.anchor = "" and irrelevant = (): name a word to replace the concept'
    if anchor in (word.casefold() for word in (config.concept, *config.synonyms)):
        yield f"gem.anchor = {anchor!r} is the concept: name another word"


FIELDS = MethodFields(Settings, per_run=("anchor",), problems=problems)
