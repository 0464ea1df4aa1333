"""Settings of EraseFlow; the method is in `erase.methods.later.eraseflow`."""

from collections.abc import Iterator
from dataclasses import dataclass

from erase.config.fields import number
from erase.config.schema import AdamW, Config
from erase.methods.settings.base import MethodFields


@dataclass(frozen=True)
class Settings(AdamW):
    """Settings of EraseFlow; those of the adapter's optimiser are inherited from `AdamW`.

    Attributes:
        anchor: word that replaces the concept in the sentence whose trajectories are taught; by
            default the first irrelevant word.
        noise: a, the noise level of the sampler's stochastic form.
        log_reward: log R, the constant reward of a trajectory.
        flow_rate: learning rate of Adam on log Z.
        points: number of a trajectory's steps in each update, sampled anew; a larger number than
            there are steps takes all.
    """

    learning_rate: float = number(3e-4, above=0)
    weight_decay: float = number(1e-4, least=0)
    anchor: str = ""
    noise: float = number(0.7, above=0)
    log_reward: float = 1000.0
    flow_rate: float = number(5e-4, above=0)
    points: int = number(1000, least=1)


def problems(config: Config) -> Iterator[str]:
    """Return conflicts between the fields, one line each."""
    anchor = config.method_settings(Settings).anchor.casefold()
    if not (anchor or config.irrelevant):
        yield 'eraseflow.anchor = "" and irrelevant = (): name a word to replace the concept'
    if anchor in (word.casefold() for word in (config.concept, *config.synonyms)):
        yield f"eraseflow.anchor = {anchor!r} is the concept: name another word"
    if config.steps < 2:
        yield f"steps = {config.steps} with eraseflow: its transitions need at least 2"


FIELDS = MethodFields(Settings, per_run=("anchor",), problems=problems)
