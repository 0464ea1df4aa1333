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
        prompts: the sentence with the concept, then with a synonym, then with irrelevant words.
        words: the word that each of them holds.
    """

    prompts: tuple[str, ...]
    words: tuple[str, ...]


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
    """Puts a word at a template's "{}"; "a {}" becomes "an {}" where a vowel follows."""
    if word[:1].lower() in tuple("aeiou"):
        template = re.sub(r"\b([Aa]) \{\}", r"\1n {}", template)
    return template.replace(SLOT, word)


def draw_groups(
    rng: np.random.Generator,
    prompts: Sequence[str],
    concept: str,
    synonyms: Sequence[str],
    irrelevant: Sequence[Sequence[str]],
    *,
    count: int,
    negatives: int,
    shuffled: float,
) -> list[Group]:
    """Draws sentences, each with one synonym and some irrelevant words to stand in.

    Args:
        rng: source of randomness.
        prompts: sentences or templates, taken in turn.
        concept: what they are about.
        synonyms: other words for it; with none, groups hold the concept's sentence alone.
        irrelevant: words for other things, in pools that are drawn from in turn.
        count: groups to draw.
        negatives: irrelevant words a group, all different.
        shuffled: share of the sentences whose words are put into a random order.

    Raises:
        InputError: a prompt lacks the concept, or there are fewer irrelevant words than wanted.
    """
    templates = [as_template(prompt, concept) for prompt in prompts]
    everything = dict.fromkeys(word for pool in irrelevant for word in pool)
    if synonyms and len(everything) < negatives:
        raise InputError(
            f"irrelevant = {', '.join(everything) or 'none'}: "
            f"{negatives} different words are needed (upper.negatives)"
        )
    groups = []
    for index in range(count):
        template = templates[index % len(templates)]
        if rng.random() < shuffled:
            template = shuffle(rng, template)
        words: list[str] = [concept]
        if synonyms:
            words.append(str(rng.choice(synonyms)))
            words += draw_words(rng, irrelevant, negatives)
        groups.append(Group(tuple(phrase(template, word) for word in words), tuple(words)))
    return groups


def draw_words(rng: np.random.Generator, pools: Sequence[Sequence[str]], count: int) -> list[str]:
    """Draws different words from pools in turn, so that each gives its share.

    Args:
        rng: source of randomness.
        pools: words; together they hold at least `count` different ones.
        count: words to draw.
    """
    drawn: list[str] = []
    turn = 0
    while len(drawn) < count:
        left = [word for word in pools[turn % len(pools)] if word not in drawn]
        if left:
            drawn.append(str(rng.choice(left)))
        turn += 1
    return drawn
