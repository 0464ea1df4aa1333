"""Settings of EAP; the method is in `erase.methods.eap`."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from erase.config.fields import choice, number
from erase.config.schema import AdamW, Config
from erase.methods.settings.base import MethodFields


@dataclass(frozen=True)
class Settings(AdamW):
    """Settings of EAP; those of the adapter's optimiser are inherited from `AdamW`.

    Attributes:
        logits_rate: learning rate of Adam on the words' logits.
        temperature: temperature of the Gumbel-softmax weights.
        preserve: λ, weight of the preserving term.
        vocabulary: file with one word per line; by default the irrelevant words are used.
        most: largest number of words used. From a larger vocabulary, the words nearest to the
            concept are clustered and the centre of each cluster is used.
        eta: η of L_esd.
        stand_in: see `esd.stand_in`.
        trajectories: model that denoises to x_t: "student" is the adapted model, "teacher" the
            frozen one.
        guidance: distilled guidance scale of all velocities in the loss; by default that of the
            trajectories.
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
    """Return conflicts between the fields, one line each."""
    named = config.method_settings(Settings).vocabulary
    if named is None and not config.irrelevant:
        yield "eap.vocabulary = None and irrelevant = (): EAP needs other words; name some"
    if named is not None and not Path(named).is_file():
        yield f"eap.vocabulary = {named!r} is not a file; name one with one word per line"


FIELDS = MethodFields(Settings, per_run=("vocabulary", "eta", "stand_in"), problems=problems)
