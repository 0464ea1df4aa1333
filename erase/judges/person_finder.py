"""Whether a picture shows a person, for evaluations of runs that erase persons.

The folder holds what `PersonJudge.save` writes and the trunk's weights, so that it is complete.
Axis letters: B pictures, h w picture sides, F features.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, UInt8

from erase.evaluation.judge import Kind
from erase.judges.persons import PersonJudge, logits
from flux_jax.errors import InputError, nearest


@dataclass(frozen=True)
class PersonFinder:
    """Judges persons for `erase.evaluation`; a picture shows the likeliest of all.

    Attributes:
        judge: the classifier.
        size: of pictures; any, since they are resized.
    """

    judge: PersonJudge
    size: None = None

    @classmethod
    def load(cls, folder: str | Path) -> "PersonFinder":
        """Open a folder.

        Raises:
            InputError: a file is missing or damaged, or the files do not belong together.
        """
        return cls(PersonJudge.open(folder))

    @property
    def names(self) -> tuple[str, ...]:
        """All persons, in the classifier's order."""
        return self.judge.classes.names

    def label(self, concept: str) -> str:
        """Return the person's name as the judge spells it; capital letters do not matter.

        Raises:
            InputError: the judge does not know the person.
        """
        by_lower = {name.lower(): name for name in self.names}
        if concept.lower() not in by_lower:
            raise InputError(
                f"{concept!r:.60} is none of the {len(self.names)} persons of the judge; "
                f"{nearest(concept, self.names)}"
            )
        return by_lower[concept.lower()]

    def kind(self, concept: str) -> Kind:
        """Return "entity".

        Raises:
            InputError: the judge does not know the person.
        """
        self.label(concept)
        return "entity"

    def labels(self, kind: Kind) -> Sequence[str]:
        """Return all names for "entity", and none for other kinds."""
        return self.names if kind == "entity" else ()

    def check_prompt(self, label: str, prompt: str) -> None:
        """Accept any prompt: the whole picture is judged."""

    def finds(
        self, pictures: UInt8[np.ndarray, "B h w 3"], labels: Sequence[str], prompts: Sequence[str]
    ) -> Bool[np.ndarray, "B"]:
        """Judge whether the likeliest person of each picture is its label."""
        likeliest = np.asarray(logits(self.judge.head, self._features(pictures))).argmax(-1)
        return likeliest == [self.names.index(label) for label in labels]

    def features(self, pictures: UInt8[np.ndarray, "B h w 3"]) -> Float[np.ndarray, "B F"]:
        """Return the trunk's features, averaged over the picture."""
        return np.asarray(self._features(pictures))

    def _features(self, pictures: UInt8[np.ndarray, "B h w 3"]) -> Float[jnp.ndarray, "B F"]:
        return jnp.asarray(self.judge.trunk.features(pictures))
