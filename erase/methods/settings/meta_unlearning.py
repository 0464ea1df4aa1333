"""Settings of Meta-Unlearning; `erase.methods.meta_unlearning` is the method."""

from collections.abc import Iterator
from dataclasses import dataclass

from erase.config.fields import choice, number
from erase.config.schema import AdamW, Config
from erase.methods.settings.base import MethodFields


@dataclass(frozen=True)
class Settings(AdamW):
    """Meta-Unlearning's; its optimiser's settings are `AdamW`'s.

    Attributes:
        eta: η of L_esd.
        stand_in: see `erase.methods.esd`.
        trajectories: whose way leads to L_esd's x_t: the adapted model's ("student"), or the frozen
            one's.
        guidance: distilled guidance scale of all velocities; by default that of the trajectories.
        keep: γ1.
        meta: γ2.
        inner_steps: that teach the concept again.
        inner_rate: AdamW's, of these.
        pictures: of related concepts.
        related: prompts that they show, in turn; by default the first sentence with each irrelevant
            word in the concept's place.
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
    """What is wrong between the fields, a line each."""
    if not (config.method_settings(Settings).related or config.irrelevant):
        yield (
            "meta_unlearning.related = () and irrelevant = (): Meta-Unlearning needs related "
            "concepts; name prompts or words"
        )


FIELDS = MethodFields(Settings, per_run=("eta", "stand_in", "related"), problems=problems)
