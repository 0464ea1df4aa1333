"""Settings of ESD; `erase.methods.esd` is the method."""

from dataclasses import dataclass

from erase.config.fields import choice, number
from erase.config.schema import AdamW
from erase.methods.settings.base import MethodFields


@dataclass(frozen=True)
class Settings(AdamW):
    """ESD's; its optimiser's settings are `AdamW`'s.

    Attributes:
        eta: η, how far past the unconditional velocity the target lies.
        stand_in: words that take the concept's place in its sentence, whose velocity then is the
            unconditional one; an empty text leaves the place out; by default the empty prompt.
        erase_to: prompt g; by default what is unconditional.
        trajectories: whose way leads to x_t: the adapted model's ("student"), or the frozen one's.
        guidance: distilled guidance scale of all velocities in the loss; by default that of the
            trajectories.
    """

    learning_rate: float = number(1e-4, above=0)
    weight_decay: float = number(0.0, least=0)
    eta: float = number(1.0, least=0)
    stand_in: str | None = None
    erase_to: str = ""
    trajectories: str = choice("student", "student", "teacher")
    guidance: float | None = number(None, least=0)


FIELDS = MethodFields(Settings, per_run=("eta", "stand_in", "erase_to"))
