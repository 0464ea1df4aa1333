"""The small model's judge: whether a picture shows what its prompt names, or given words.

Axis letters: B pictures, h w picture sides.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from erase.evaluation.emoji_judge import NetworkJudge
from erase.evaluation.judge import open_judge
from erase.judges.figures import percentage, picture_count
from erase.judges.protocol import Figure, Scores
from erase.model.digest import records, summary
from flux_jax.errors import InputError


@dataclass(frozen=True)
class SmallModelJudge:
    """Counts pictures that show what is sought in them.

    Attributes:
        judge: the network.
        folder: its folder's name and the digest of its files.
        words: entities and styles to look for in all pictures.
    """

    judge: NetworkJudge
    folder: str
    words: tuple[str, ...] = ()

    @classmethod
    def load(cls, folder: str | Path, words: Sequence[str] = ()) -> "SmallModelJudge":
        """Open the judge.

        Args:
            folder: its folder.
            words: entities and styles to look for in all pictures.

        Raises:
            InputError: the folder cannot be used, or the judge does not know a word.
        """
        judge = open_judge(folder)
        if not isinstance(judge, NetworkJudge):
            raise InputError(f"judge = {str(folder)!r} is not a small model's; name its folder")
        for word in words:
            if judge.kind(word) == "relation":
                raise InputError(f"find = {word!r} is a relation; name entities or styles")
        files = records({each.name: each for each in Path(folder).iterdir() if each.is_file()})
        return cls(judge, f"{Path(folder).name} {summary(files)[:12]}", tuple(words))

    @property
    def size(self) -> int:
        """Height and width of the pictures that it accepts, in pixels."""
        return self.judge.size

    @property
    def description(self) -> Mapping[str, str | float]:
        """The judge's files and the words."""
        words = {"words": ", ".join(self.words)} if self.words else {}
        return {"judge": "the small model's", "folder": self.folder, **words}

    def scores(
        self, pictures: UInt8[np.ndarray, "B h w 3"], prompts: Sequence[str]
    ) -> list[Scores]:
        """Return `named`, and `shows WORD` for each word: 1 if the picture shows it, else 0.

        `named` is 1 if the picture shows all entities that its prompt names; it is absent if the
        prompt names none.
        """
        verdict = self.judge(pictures)
        # The sigmoid of a logit above 0 is above the threshold of one half.
        shown = np.asarray(verdict.entities) > 0
        found = {word: self.judge.shows(pictures, word) for word in self.words}
        scores = []
        for row, prompt in enumerate(prompts):
            named = self.named(prompt)
            own = {"named": float(shown[row, named].all())} if named else {}
            scores.append(own | {f"shows {w}": float(hits[row]) for w, hits in found.items()})
        return scores

    def figures(self, scores: Sequence[Scores]) -> list[Figure]:
        """Return the share of pictures that show what their prompts name, and counts by word."""
        named = [each["named"] > 0 for each in scores if "named" in each]
        shares = [percentage("Acc", named)] if named else []
        return shares + [
            picture_count(word, [each[f"shows {word}"] > 0 for each in scores])
            for word in (self.words if scores else ())
        ]

    def named(self, prompt: str) -> list[int]:
        """Return the indices of the entities that a prompt names; longer names match first."""
        entities = self.judge.config.entities
        names = sorted(entities, key=len, reverse=True)
        pattern = rf"\b({'|'.join(map(re.escape, names))})s?\b"
        found = dict.fromkeys(match.group(1) for match in re.finditer(pattern, prompt.lower()))
        return [entities.index(name) for name in found]
