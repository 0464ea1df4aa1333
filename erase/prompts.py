"""Sentences about a concept: templates, word shuffles, and other words in the concept's place.

Everything random is a pure function of a NumPy generator.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from convert.errors import InputError

SLOT = "{}"


@dataclass(frozen=True)
class Group:
    """One sentence with different words in the same place.

    Attributes:
        prompts: the sentence with the concept, then with others in its place.
        words: the word that each of them holds.
    """

    prompts: tuple[str, ...]
    words: tuple[str, ...]

    def first(self, count: int) -> "Group":
        """The first forms alone."""
        return Group(self.prompts[:count], self.words[:count])


def as_template(sentence: str, concept: str) -> str:
    """Puts "{}" in the concept's place, at every occurrence, whatever its case.

    Args:
        sentence: a sentence with the concept, or a template that has "{}" already.
        concept: one word or several.

    Raises:
        InputError: the sentence has neither.
    """
    template = re.sub(rf"(?<!\w){re.escape(concept)}(?!\w)", SLOT, sentence, flags=re.IGNORECASE)
    if SLOT not in template:
        raise InputError(
            f"prompts: {sentence!r} does not hold the concept {concept!r}; "
            f'name it there or write "{SLOT}" in its place'
        )
    return template


def shuffle(rng: np.random.Generator, template: str) -> str:
    """The same words in another order; "{}" is one of them, so a concept moves as a whole."""
    words = template.split()
    return " ".join(words[i] for i in rng.permutation(len(words)))


def phrase(template: str, word: str) -> str:
    """Puts a word at a template's "{}"; "a {}" becomes "an {}" where a vowel follows.

    An empty word leaves the place out.
    """
    if not word:
        return " ".join(template.replace(SLOT, " ").split())
    if word[:1].lower() in tuple("aeiou"):
        template = re.sub(r"\b([Aa]) \{\}", r"\1n {}", template)
    return template.replace(SLOT, word)


def leave_out(template: str, part_of_speech: str = "noun") -> str:
    """The sentence without the concept: "a photo of {}" without its noun, or its adjective.

    Args:
        template: a sentence with "{}".
        part_of_speech: of the concept; a noun takes its article along.
    """
    if part_of_speech == "noun":
        template = re.sub(r"\b(an?|the) \{\}", SLOT, template, flags=re.IGNORECASE)
    words = " ".join(template.replace(SLOT, " ").split())
    return re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", words)


def draw_groups(
    rng: np.random.Generator,
    prompts: Sequence[str],
    concept: str,
    others: Sequence[str],
    *,
    count: int,
    shuffled: float,
) -> list[Group]:
    """Draws sentences with the concept, each also with other words in its place.

    Args:
        rng: source of randomness.
        prompts: sentences or templates, taken in turn.
        concept: what they are about.
        others: words to stand in for it.
        count: sentences to draw.
        shuffled: share of the sentences whose words are put into a random order.

    Raises:
        InputError: a prompt lacks the concept.
    """
    templates = [as_template(prompt, concept) for prompt in prompts]
    words = (concept, *others)
    groups = []
    for index in range(count):
        template = templates[index % len(templates)]
        if rng.random() < shuffled:
            template = shuffle(rng, template)
        groups.append(Group(tuple(phrase(template, word) for word in words), words))
    return groups
