"""Settings of Concept Ablation; the method is in `erase.methods.concept_ablation`."""

from collections.abc import Iterator
from dataclasses import dataclass

from erase.config.fields import choice, number
from erase.config.schema import AdamW, Config
from erase.methods.settings.base import MethodFields


@dataclass(frozen=True)
class Settings(AdamW):
    """Settings of Concept Ablation; those of the optimiser are inherited from `AdamW`.

    Attributes:
        anchor: word that replaces the concept; by default the first irrelevant word.
        target: "model" trains the concept's velocity towards the velocity for the anchor, "noise"
            towards ε - x on pictures of the anchor.
        prior: weight of the prior loss on the anchor.
    """

    learning_rate: float = number(1.6e-5, above=0)
    clip: float | None = number(1.0, above=0)
    anchor: str = ""
    target: str = choice("model", "model", "noise")
    prior: float = number(0.0, least=0)


def problems(config: Config) -> Iterator[str]:
    """Return conflicts between the fields, one line each."""
    anchor = config.method_settings(Settings).anchor.casefold()
    if not (anchor or config.irrelevant):
        yield 'concept_ablation.anchor = "" and irrelevant = (): name a word to replace the concept'
    if anchor in (word.casefold() for word in (config.concept, *config.synonyms)):
        yield f"concept_ablation.anchor = {anchor!r} is the concept: name another word"


FIELDS = MethodFields(Settings, per_run=("anchor",), problems=problems)
