"""Zero-shot classification by CLIP: does a picture show what its prompt names?

The paper's Table 3 counts pictures whose class CLIP ranks first among all classes, each written as
"a photo of the {class}". The class that a picture should show is the one that its prompt names.
Axis letters: B pictures, K classes, h w picture sides.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8

from erase.judges.clip_score import MODEL
from erase.judges.named import Classes, softmax
from erase.judges.protocol import Figure, Scores
from flux_jax.errors import InputError
from flux_jax.models.clip.load import LoadedCLIP, load

TEMPLATE = "a photo of the {}"


def check_template(template: str) -> None:
    """Check that a text has one place for a class.

    Raises:
        InputError: it has none, or several.
    """
    if template.count("{}") != 1:
        raise InputError(f"template = {template!r:.100} must have {{}} once, for a class")


@dataclass(frozen=True)
class CLIPClasses:
    """Names the class of each picture.

    Attributes:
        clip: the model.
        classes: of the pictures.
        template: text of a class, with {} in place of its name.
    """

    clip: LoadedCLIP
    classes: Classes
    template: str = TEMPLATE

    def __post_init__(self) -> None:
        """Check the template.

        Raises:
            InputError: it has no place for the class.
        """
        check_template(self.template)

    @classmethod
    def load(
        cls,
        names: Sequence[str],
        model: str | None = None,
        words: Mapping[str, str] | None = None,
        erased: Sequence[str] = (),
        template: str = TEMPLATE,
    ) -> "CLIPClasses":
        """Open the model.

        Args:
            names: of all classes.
            model: a folder or a name on the hub; None for `MODEL`.
            words: other words that prompts name a class by; their classes.
            erased: classes whose accuracy is counted apart.
            template: text of a class, with {} in place of its name.

        Raises:
            InputError: see `flux_jax.models.clip.load.load`; or the classes are unusable.
        """
        # Before the model, which may be downloaded.
        check_template(template)
        classes = Classes(tuple(names), words or {}, tuple(erased))
        return cls(load(model or MODEL), classes, template)

    @property
    def description(self) -> Mapping[str, str | float]:
        """Model, template and classes."""
        return {
            "judge": "CLIP classification",
            "model": self.clip.name,
            "template": self.template,
            "classes": ", ".join(self.classes.names),
            **({"synonyms": ", ".join(self.classes.words)} if self.classes.words else {}),
        }

    def probabilities(self, pictures: UInt8[np.ndarray, "B h w 3"]) -> Float[np.ndarray, "B K"]:
        """Softmax over the classes of CLIP's scaled cosines."""
        texts = self.clip.texts([self.template.replace("{}", name) for name in self.classes.names])
        scale = np.exp(np.asarray(self.clip.params["logit_scale"], np.float64))
        return softmax(scale * (self.clip.pictures(pictures).astype(np.float64) @ texts.T))

    def scores(
        self, pictures: UInt8[np.ndarray, "B h w 3"], prompts: Sequence[str]
    ) -> list[Scores]:
        """See `Classes.scores`."""
        return self.classes.scores(self.probabilities(pictures), prompts)

    def figures(self, scores: Sequence[Scores]) -> list[Figure]:
        """See `Classes.figures`."""
        return self.classes.figures(scores, "CLIP accuracy")
