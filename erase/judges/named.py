"""Classes that prompts name, and accuracy over pictures whose class is known from their prompt.

Axis letters: B pictures, K classes.
"""

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from erase.judges.figures import percentage
from erase.judges.protocol import Figure, Scores
from flux_jax.errors import InputError, nearest


@dataclass(frozen=True)
class Classes:
    """Names of classes, of which each picture shows one.

    Attributes:
        names: of all K classes.
        words: synonyms that prompts name a class by; their classes.
        erased: the classes that an adapter erases; accuracy over the others is separate.
    """

    names: tuple[str, ...]
    words: Mapping[str, str] = field(default_factory=dict)
    erased: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check the names.

        Raises:
            InputError: there are fewer than two, or one is empty or listed twice, or a synonym or
                an erased class has no class, or a synonym is empty or also a class.
        """
        names = [name.strip().lower() for name in self.names]
        if len(names) < 2 or len(set(names)) < len(names) or "" in names:
            raise InputError(
                f"classes = {self.names!r:.100}: give at least two different ones, of which each "
                "picture shows one"
            )
        for name in self.erased:
            if name not in self.names:
                raise InputError(f"erased = {name!r:.60} is no class; {nearest(name, self.names)}")
        for word, name in self.words.items():
            if name not in self.names:
                raise InputError(
                    f"classes: {word!r:.60} is a synonym of {name!r:.60}, which is no class; add "
                    "the class"
                )
        for word, name in self.words.items():
            if not word.strip() or word.strip().lower() in names:
                raise InputError(
                    f"classes: {word!r:.60}, a synonym of {name!r:.60}, is empty or a class too; "
                    "remove it"
                )

    def named(self, prompt: str) -> str | None:
        """The class that a prompt names: the first one in it, the longest if several begin there.

        Args:
            prompt: capital letters do not matter; a plural in -s counts.

        Returns:
            A class; None if the prompt names none.
        """
        word = self._word(prompt)
        return None if word is None else self._by_word[word]

    @functools.cached_property
    def _by_word(self) -> dict[str, str]:
        """Classes by their names and synonyms in lower case."""
        words = {name.lower(): name for name in self.names}
        return words | {word.lower(): name for word, name in self.words.items()}

    def _word(self, prompt: str) -> str | None:
        """The word, in lower case, by which a prompt names its class; None if it names none."""
        first = self._pattern.search(prompt.lower())
        return first[1] if first else None

    @functools.cached_property
    def _pattern(self) -> re.Pattern[str]:
        """Matches the words of all classes, the longest first."""
        longest = sorted(self._by_word, key=len, reverse=True)
        return re.compile(rf"(?<!\w)({'|'.join(map(re.escape, longest))})s?(?!\w)")

    def check_prompts(self, prompts: Sequence[str]) -> None:
        """Check that each prompt names a class; cheap, for use before pictures are drawn.

        Raises:
            InputError: one names none.
        """
        for prompt in prompts:
            if self.named(prompt) is None:
                raise InputError(
                    f"prompt = {prompt!r:.120} names none of the {len(self.names)} classes "
                    f"({', '.join(self.names[:3])}, ...): its pictures cannot be counted"
                )

    def scores(
        self, probabilities: Float[np.ndarray, "B K"], prompts: Sequence[str]
    ) -> list[Scores]:
        """Return `class`, the index of the likeliest class, and its `probability`.

        For prompts that name a class, also `named`, that class's index, and `right`: 1 if both are
        the same; and `synonym`: 1, if they name it by a synonym.
        """
        scores: list[Scores] = []
        for row, prompt in zip(probabilities, prompts, strict=True):
            best = int(row.argmax())
            score = {"class": float(best), "probability": float(row[best])}
            word = self._word(prompt)
            if word is not None:
                name = self._by_word[word]
                wanted = self.names.index(name)
                score |= {"named": float(wanted), "right": float(best == wanted)}
                score |= {"synonym": 1.0} if word != name.lower() else {}
            scores.append(score)
        return scores

    def figures(self, scores: Sequence[Scores], name: str) -> list[Figure]:
        """Return the accuracy over pictures whose prompts name a class.

        Args:
            scores: of all pictures.
            name: column, if no classes are erased; else the columns are Acc_e (erased classes),
                Acc_g (erased classes that prompts name by a synonym) and Acc_ir (all others), each
                if it has pictures.
        """
        erased = {self.names.index(each) for each in self.erased}
        columns: dict[str, list[bool]] = {}
        for each in scores:
            if "named" in each:
                own = "Acc_g" if "synonym" in each else "Acc_e"
                cell = own if each["named"] in erased else "Acc_ir"
                columns.setdefault(cell if erased else name, []).append(each["right"] == 1)
        return [percentage(column, columns[column]) for column in sorted(columns)]


def softmax(logits: Float[np.ndarray, "B K"]) -> Float[np.ndarray, "B K"]:
    """Probabilities of logits along the last axis."""
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)
