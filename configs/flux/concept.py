"""A concept of the paper's Table 6: its words, sentences and prompts."""

import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from erase.data.words.templates import phrase
from flux_jax.errors import InputError


@dataclass(frozen=True)
class Concept:
    """A concept to erase, and the prompts by which its erasure is measured.

    Attributes:
        name: as sentences have it; Table 6 has capital letters.
        prompts: training sentences.
        synonyms: other words with the same meaning, for L_rsc and Acc_g.
        irrelevant: words for other things that fit into the same sentences. None of them is a
            concept of the category, on which Acc_ir is measured, or a synonym of one.
        anchor: what Concept Ablation draws instead.
        templates: evaluation prompts, "{}" in place of the concept.
        part_of_speech: "noun", "verb", or "adjective" for all other words.
        printed: the paper's spelling, if it has other words.
    """

    name: str
    prompts: tuple[str, ...]
    synonyms: tuple[str, ...]
    irrelevant: tuple[str, ...]
    anchor: str
    templates: tuple[str, ...]
    part_of_speech: str = "noun"
    printed: str = ""

    def __post_init__(self) -> None:
        """Check the name.

        Raises:
            InputError: it is empty, or has no letter or digit to name files by.
        """
        if not self.name.strip() or not self.slug:
            raise InputError(f"name = {self.name!r:.60} names no concept; write its word")

    @property
    def slug(self) -> str:
        """Name on the command line and in names of files, such as `pablo_picasso`."""
        return slug_of(self.printed or self.name)

    def prompt(self, number: int, word: str = "") -> str:
        """Evaluation prompt of a number; the templates are used in turn.

        Args:
            number: from 0.
            word: word in the concept's place; the concept by default.
        """
        return phrase(self.templates[number % len(self.templates)], word or self.name)


def slug_of(name: str) -> str:
    """Return a name in lower-case letters, digits and underscores, accents left out."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]+", "_", plain.lower()).strip("_")


def by_slug(concepts: Iterable[Concept]) -> Mapping[str, Concept]:
    """Return concepts by their slugs."""
    return {each.slug: each for each in concepts}
