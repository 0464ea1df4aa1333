"""Zero-shot classification by CLIP: does a picture show what its prompt names?

The paper's Table 3 counts pictures whose class CLIP ranks first among all classes, each written as
"a photo of the {class}". The class that a picture should show is the one that its prompt names.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, UInt8

from erase.judges.clip_score import MODEL
from erase.judges.figures import percentage
from erase.judges.protocol import Figure, Scores
from flux_jax.errors import InputError
from flux_jax.models.clip.load import LoadedCLIP, load

TEMPLATE = "a photo of the {}"


@dataclass(frozen=True)
class CLIPClasses:
    """Names the class of each picture.

    Attributes:
        clip: the model.
        classes: names of all classes.
        words: other words that prompts name a class by, such as synonyms; their classes.
        template: text of a class, with {} in place of its name.
    """

    clip: LoadedCLIP
    classes: tuple[str, ...]
    words: Mapping[str, str] = field(default_factory=dict)
    template: str = TEMPLATE

    def __post_init__(self) -> None:
        """Check the classes.

        Raises:
            InputError: there are fewer than two, or one is listed twice, or a word has no class.
        """
        names = [name.lower() for name in self.classes]
        if len(names) < 2 or len(set(names)) < len(names):
            raise InputError(
                f"classes = {self.classes!r:.100}: give at least two different ones, of which each "
                "picture shows one"
            )
        unknown = sorted(word for word, name in self.words.items() if name not in self.classes)
        if unknown:
            raise InputError(
                f"words: {unknown[0]!r:.60} stands for {self.words[unknown[0]]!r:.60}, which is "
                "not among the classes"
            )
        if self.template.count("{}") != 1:
            raise InputError(
                f"template = {self.template!r:.100} must have {{}} once, for the class"
            )

    @classmethod
    def load(
        cls,
        classes: Sequence[str],
        model: str = MODEL,
        words: Mapping[str, str] | None = None,
        template: str = TEMPLATE,
    ) -> "CLIPClasses":
        """Open the model, a folder or a name on the hub.

        Raises:
            InputError: see `flux_jax.models.clip.load.load`; or the classes are unusable.
        """
        return cls(load(model), tuple(classes), words or {}, template)

    @property
    def description(self) -> Mapping[str, str | float]:
        """Model, template and classes."""
        return {
            "judge": "CLIP classification",
            "model": self.clip.name,
            "template": self.template,
            "classes": ", ".join(self.classes),
        }

    def named(self, prompt: str) -> str | None:
        """The class that a prompt names: the first word that it has, the longest if several begin.

        Args:
            prompt: capital letters do not matter; a plural in -s counts.

        Returns:
            A class; None if the prompt names none.
        """
        words = {name.lower(): name for name in self.classes}
        words |= {word.lower(): name for word, name in self.words.items()}
        longest = sorted(words, key=len, reverse=True)
        pattern = rf"(?<!\w)({'|'.join(map(re.escape, longest))})s?(?!\w)"
        first = re.search(pattern, prompt.lower())
        return words[first[1]] if first else None

    def check_prompts(self, prompts: Sequence[str]) -> None:
        """Check that each prompt names a class; cheap, for use before pictures are drawn.

        Raises:
            InputError: one names none.
        """
        for prompt in prompts:
            if self.named(prompt) is None:
                raise InputError(
                    f"prompt = {prompt!r:.120} names none of the {len(self.classes)} classes "
                    f"({', '.join(self.classes[:3])}, ...): its pictures cannot be counted"
                )

    def probabilities(
        self, pictures: UInt8[np.ndarray, "B h w 3"]
    ) -> Float[np.ndarray, "B classes"]:
        """Softmax over the classes of CLIP's scaled cosines."""
        texts = self.clip.texts([self.template.format(name) for name in self.classes])
        scale = np.exp(np.asarray(self.clip.params["logit_scale"], np.float64))
        logits = scale * (self.clip.pictures(pictures).astype(np.float64) @ texts.T)
        powers = np.exp(logits - logits.max(-1, keepdims=True))
        return powers / powers.sum(-1, keepdims=True)

    def scores(
        self, pictures: UInt8[np.ndarray, "B h w 3"], prompts: Sequence[str]
    ) -> list[Scores]:
        """Return `class`, the index that CLIP ranks first, and its `probability`.

        For prompts that name a class, also `named`, that class's index, and `right`: 1 if both are
        the same.
        """
        scores: list[Scores] = []
        for row, prompt in zip(self.probabilities(pictures), prompts, strict=True):
            best = int(row.argmax())
            score = {"class": float(best), "probability": float(row[best])}
            name = self.named(prompt)
            if name is not None:
                wanted = self.classes.index(name)
                score |= {"named": float(wanted), "right": float(best == wanted)}
            scores.append(score)
        return scores

    def figures(self, scores: Sequence[Scores]) -> list[Figure]:
        """Return the accuracy over pictures whose prompts name a class."""
        right = [each["right"] == 1 for each in scores if "right" in each]
        return [percentage("CLIP accuracy", right)] if right else []
