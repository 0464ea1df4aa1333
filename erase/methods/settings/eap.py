"""Settings of EAP; `erase.methods.eap` is the method."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from erase.config.fields import choice, number
from erase.config.schema import AdamW, Config
from erase.methods.settings.base import MethodFields


@dataclass(frozen=True)
class Settings(AdamW):
    """EAP's; its optimiser's settings are `AdamW`'s.

    Attributes:
        logits_rate: Adam's, of the words' logits.
        temperature: of the Gumbel-softmax weights.
        preserve: λ.
        vocabulary: file with a word a line; by default the irrelevant words serve.
        most: words of it that are looked at: centres of that many clusters among the words nearest
            to the concept, where there are more.
        eta: η of L_esd.
        stand_in: see `erase.methods.esd`.
        trajectories: whose way leads to x_t: the adapted model's ("student"), or the frozen one's.
        guidance: distilled guidance scale of all velocities; by default that of the trajectories.
    """

    learning_rate: float = number(1e-5, above=0)
    weight_decay: float = number(0.0, least=0)
    logits_rate: float = number(1e-2, above=0)
    temperature: float = number(2.0, above=0)
    preserve: float = number(1.0, least=0)
    vocabulary: str | None = None
    most: int = number(100, least=1)
    eta: float = number(1.0, least=0)
    stand_in: str | None = None
    trajectories: str = choice("student", "student", "teacher")
    guidance: float | None = number(None, least=0)


def problems(config: Config) -> Iterator[str]:
    """What is wrong between the fields, a line each."""
    named = config.method_settings(Settings).vocabulary
    if named is None and not config.irrelevant:
        yield "eap.vocabulary = None and irrelevant = (): EAP needs other words; name some"
    if named is not None and not Path(named).is_file():
        yield f"eap.vocabulary = {named!r} is not a file; name one with a word a line"


FIELDS = MethodFields(Settings, per_run=("vocabulary", "eta", "stand_in"), problems=problems)
