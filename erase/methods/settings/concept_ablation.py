"""Settings of Concept Ablation; `erase.methods.concept_ablation` is the method."""

from collections.abc import Iterator
from dataclasses import dataclass

from erase.config.fields import choice, number
from erase.config.schema import AdamW, Config
from erase.methods.settings.base import MethodFields


@dataclass(frozen=True)
class Settings(AdamW):
    """Concept Ablation's; its optimiser's settings are `AdamW`'s.

    Attributes:
        anchor: what the concept becomes; by default the first of the irrelevant words.
        target: "model" or "noise", see the module.
        prior: weight of the prior.
    """

    learning_rate: float = number(1.6e-5, above=0)
    clip: float | None = number(1.0, above=0)
    anchor: str = ""
    target: str = choice("model", "model", "noise")
    prior: float = number(0.0, least=0)


def problems(config: Config) -> Iterator[str]:
    """What is wrong between the fields, a line each."""
    anchor = config.method_settings(Settings).anchor.casefold()
    if not (anchor or config.irrelevant):
        yield 'concept_ablation.anchor = "" and irrelevant = (): name what the concept becomes'
    if anchor in (word.casefold() for word in (config.concept, *config.synonyms)):
        yield f"concept_ablation.anchor = {anchor!r} is the concept: name what it is to become"


FIELDS = MethodFields(Settings, per_run=("anchor",), problems=problems)
