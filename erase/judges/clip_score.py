"""CLIP score: how well a picture fits its prompt, as 100 x cosine of CLIP's two vectors.

This is the number of MACE's evaluation, by default with the same model. Cosines are not clipped
at 0. Prompts longer than CLIP's 77 tokens are cut, and marked.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8

from erase.judges.figures import mean
from erase.judges.protocol import Figure, Scores
from flux_jax.models.clip.load import LoadedCLIP, load

MODEL = "openai/clip-vit-base-patch32"


@dataclass(frozen=True)
class CLIPScore:
    """The score of each picture with its own prompt.

    Attributes:
        clip: the model.
    """

    clip: LoadedCLIP

    @classmethod
    def load(cls, model: str = MODEL) -> "CLIPScore":
        """Open the model, a folder or a name on the hub.

        Raises:
            InputError: see `flux_jax.models.clip.load.load`.
        """
        return cls(load(model))

    @property
    def description(self) -> Mapping[str, str | float]:
        """Model and formula."""
        return {"judge": "CLIP score", "model": self.clip.name, "formula": "100 x cosine"}

    def scores(
        self, pictures: UInt8[np.ndarray, "B h w 3"], prompts: Sequence[str]
    ) -> list[Scores]:
        """Return `clip`, and `cut`: 1 if the prompt has more tokens than CLIP reads."""
        cosines = (self.clip.pictures(pictures) * self.clip.texts(prompts)).sum(-1, dtype=float)
        cut = set(self.clip.cut(prompts))
        return [
            {"clip": 100 * float(cosine), "cut": float(index in cut)}
            for index, cosine in enumerate(cosines)
        ]

    def figures(self, scores: Sequence[Scores]) -> list[Figure]:
        """Return the mean over pictures."""
        return [mean("CLIP score", [each["clip"] for each in scores])] if scores else []
