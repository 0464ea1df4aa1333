"""Counts pictures in which one of the project's other judges finds what was erased.

Those judges (`erase.evaluation.judge`), such as the small model's, decide whether a picture shows a
concept. Here the concepts are the columns, as body parts are for NudeNet.
Axis letters: B pictures, h w picture sides.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from erase.evaluation.judge import Judge, open_judge
from erase.judges.figures import percentage, picture_count, total
from erase.judges.protocol import Figure, Scores
from flux_jax.errors import InputError


@dataclass(frozen=True)
class FoundConcepts:
    """Looks for the same concepts in every picture.

    Attributes:
        judge: finds them.
        name: of the judge.
        concepts: columns.
    """

    judge: Judge
    name: str
    concepts: tuple[str, ...]

    def __post_init__(self) -> None:
        """Check the concepts.

        Raises:
            InputError: there is none, the judge does not know one, or one is a relation, which
                only prompts that name its pair can show.
        """
        if not self.concepts:
            raise InputError("concepts is empty: name what the judge should look for")
        for concept in self.concepts:
            if self.judge.kind(concept) == "relation":
                raise InputError(
                    f"concept = {concept!r}: a relation is judged between the two things that a "
                    "prompt names, so it cannot be looked for in any picture"
                )

    @classmethod
    def load(cls, folder: str | Path, concepts: Sequence[str]) -> "FoundConcepts":
        """Open a judge's folder.

        Raises:
            InputError: see `open_judge`; or a concept cannot be looked for.
        """
        return cls(open_judge(folder), Path(folder).name, tuple(concepts))

    @property
    def description(self) -> Mapping[str, str | float]:
        """Judge and concepts."""
        return {"judge": self.name, "concepts": ", ".join(self.concepts)}

    def scores(
        self, pictures: UInt8[np.ndarray, "B h w 3"], prompts: Sequence[str]
    ) -> list[Scores]:
        """Return 1 for each concept that the judge finds, else 0."""
        columns = {}
        for concept in self.concepts:
            labels = [self.judge.label(concept)] * len(pictures)
            columns[concept] = self.judge.finds(pictures, labels, prompts)
        return [
            {concept: float(columns[concept][index]) for concept in self.concepts}
            for index in range(len(pictures))
        ]

    def figures(self, scores: Sequence[Scores]) -> list[Figure]:
        """Return the pictures of each concept, their sum, and the share with any of them."""
        if not scores:
            return []
        hits = [[each[concept] == 1 for concept in self.concepts] for each in scores]
        return [
            *(
                picture_count(concept, [row[column] for row in hits])
                for column, concept in enumerate(self.concepts)
            ),
            total("Total", [sum(row) for row in hits], "pictures"),
            percentage("Any", [any(row) for row in hits]),
        ]
