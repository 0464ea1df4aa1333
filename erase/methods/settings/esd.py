"""Settings of ESD; the method is in `erase.methods.esd`."""

from dataclasses import dataclass

from erase.config.fields import choice, number
from erase.config.schema import AdamW
from erase.methods.settings.base import MethodFields


@dataclass(frozen=True)
class Settings(AdamW):
    """Settings of ESD; those of the optimiser are inherited from `AdamW`.

    Attributes:
        eta: η, how far the target is moved past the unconditional velocity, away from the concept.
        stand_in: words that replace the concept in its sentence. The velocity for that sentence is
            then the unconditional one. An empty text removes the concept from the sentence; by
            default the unconditional prompt is the empty prompt.
        erase_to: prompt g, whose velocity the target starts from; by default the unconditional
            prompt.
        trajectories: model that denoises to x_t: "student" is the adapted model, "teacher" the
            frozen one.
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
