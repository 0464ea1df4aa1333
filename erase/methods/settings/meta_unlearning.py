"""Settings of Meta-Unlearning; the method is in `erase.methods.meta_unlearning`."""

from collections.abc import Iterator
from dataclasses import dataclass

from erase.config.fields import choice, number
from erase.config.schema import AdamW, Config
from erase.methods.settings.base import MethodFields


@dataclass(frozen=True)
class Settings(AdamW):
    """Settings of Meta-Unlearning; those of the optimiser are inherited from `AdamW`.

    Attributes:
        eta: η of L_esd.
        stand_in: see `esd.stand_in`.
        trajectories: model that denoises to L_esd's x_t: "student" is the adapted model, "teacher"
            the frozen one.
        guidance: distilled guidance scale of all velocities in the loss; by default that of the
            trajectories.
        keep: γ1, weight of L_keep.
        meta: γ2, weight of L_keep after relearning.
        inner_steps: number of inner steps that relearn the concept.
        inner_rate: learning rate of AdamW in the inner steps.
        pictures: number of pictures of related concepts.
        related: prompts of these pictures, used in turn; by default the first sentence with each
            irrelevant word in the concept's place.
    """

    learning_rate: float = number(1e-5, above=0)
    eta: float = number(1.0, least=0)
    stand_in: str | None = None
    trajectories: str = choice("student", "student", "teacher")
    guidance: float | None = number(None, least=0)
    keep: float = number(0.1, least=0)
    meta: float = number(0.1, least=0)
    inner_steps: int = number(3, least=1)
    inner_rate: float = number(1e-4, above=0)
    pictures: int = number(8, least=1)
    related: tuple[str, ...] = ()


def problems(config: Config) -> Iterator[str]:
    """Return conflicts between the fields, one line each."""
    if not (config.method_settings(Settings).related or config.irrelevant):
        yield (
            "meta_unlearning.related = () and irrelevant = (): Meta-Unlearning needs related "
            "concepts; name prompts or words"
        )


FIELDS = MethodFields(Settings, per_run=("eta", "stand_in", "related"), problems=problems)
