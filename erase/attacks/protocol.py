"""What every attack that searches is: a function of the attacked model and a budget."""

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np

from erase.config.schema import Config
from erase.data.words.templates import as_template
from erase.runtime.cache import Cache
from flux_jax.lora import Adapter
from flux_jax.pipeline import Pipeline
from flux_jax.programs import Denoiser

# Adapters with their strengths.
Adapters = Sequence[tuple[Adapter, float]]


@dataclass(frozen=True)
class Target:
    """A model under attack.

    Attributes:
        pipe: the frozen model.
        adapters: what erases the concept; nothing if the frozen model itself is attacked.
        config: the run's configuration, with its synonyms.
        title: of progress bars.
    """

    pipe: Pipeline
    adapters: Adapters
    config: Config
    title: str = ""

    def denoiser(self) -> Denoiser:
        """Return the attacked transformer, at the evaluation's guidance."""
        ids = self.pipe.image_ids(self.config.height, self.config.width)
        return self.pipe.denoiser(ids, self.config.evaluation.guidance, self.adapters)

    @property
    def templates(self) -> list[str]:
        """Sentences with "{}" in the concept's place, to search with; those of training."""
        concept = self.config.concept
        return list(dict.fromkeys(as_template(each, concept) for each in self.config.prompts))

    @property
    def words(self) -> tuple[str, ...]:
        """The concept and its synonyms."""
        return (self.config.concept, *self.config.synonyms)

    def rng(self) -> np.random.Generator:
        """Return a generator of seeds that neither training nor evaluation uses."""
        return np.random.default_rng([self.config.evaluation.seed, 1])


@dataclass(frozen=True)
class Attempt:
    """What an attack has found.

    Attributes:
        prompts: prompts of the judged pictures, used in turn. One may have no text that says the
            same; its encoding is then in `Pipeline.remembered`.
        models: adapters to draw with, used in turn.
        notes: what the search found, of JSON types.
    """

    prompts: Sequence[str]
    models: Sequence[Adapters]
    notes: Mapping[str, Any] = field(default_factory=dict)


@runtime_checkable
class Attack(Protocol):
    """A family of attacks that searches.

    Attributes:
        needs_model: whether the search uses the attacked transformer; if not, its prompts are the
            same for every model.
    """

    @property
    def needs_model(self) -> bool: ...  # noqa: D102

    def __call__(self, target: Target, budget: Any, saved: Cache | None) -> dict[str, Attempt]:
        """Search.

        Args:
            target: the attacked model.
            budget: the family's, of the class that `erase.attacks.families` names.
            saved: saves the search as it goes, and has that of an interrupted command.

        Returns:
            What was found, by the name of its row in tables: the family's, and controls.

        Raises:
            InputError: a prompt is too long for the search, or a budget does not fit the model.
            PreemptedError: the system requested a stop; the search so far is saved.
        """
        ...


def search_of(family: str) -> Attack:
    """Return the attack of a family in `SEARCHES`."""
    return importlib.import_module(f"erase.attacks.{family}").ATTACK
