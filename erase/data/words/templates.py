"""Sentences about a concept: templates, word shuffles, and replacements of the concept.

All randomness comes from a NumPy generator passed as an argument.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from erase.config.fields import shown
from erase.data.words.english import article, plural
from erase.data.words.spelling import mentions
from flux_jax.errors import InputError

SLOT = "{}"
SLOT_PATTERN = re.escape(SLOT)
# Characters allowed between an article and its word.
OPENING = r"[\"'(“‘]*"
# "{}" with attached quotes or endings, as in "{}s", "{}'s" and "{}-like".
ATTACHED = rf"(?:[\"'(“‘]{SLOT_PATTERN}[\"')”’]|{SLOT_PATTERN}(?:['’]?s\b['’]?|-?like\b)?)"
# Removed together with their noun.
DETERMINERS = (
    "(?:an?|the|this|that|these|those|one|two|three|four|five|six|seven|eight|nine|ten|some|many|"
    "several|few)"
)
# Words that no article can precede.
CONNECTING = (
    "(?:and|or|but|with|of|in|on|at|by|for|from|to|into|onto|over|under|above|below|behind|beside|"
    "between|near|next|inside|outside|is|are|was|were|that|who|which|as)"
)


@dataclass(frozen=True)
class Group:
    """Forms of one sentence, with different words in the same place.

    Attributes:
        prompts: the sentence with the concept, then with other words in its place.
        words: the word in each of these prompts.
    """

    prompts: tuple[str, ...]
    words: tuple[str, ...]

    def first(self, count: int) -> "Group":
        """Keep only the first `count` forms."""
        return Group(self.prompts[:count], self.words[:count])


def as_template(sentence: str, concept: str) -> str:
    """Replace the concept by "{}" at every occurrence, and its plural by "{}s".

    Args:
        sentence: a sentence with the concept, in any form that `erase.data.words.spelling` lists,
            or a template that already has "{}".
        concept: one word or several.

    Raises:
        InputError: the sentence has neither the concept nor "{}".
    """
    template, done = "", 0
    for each in mentions(sentence, concept):
        template += sentence[done : each.start] + SLOT + ("s" if each.plural else each.ending)
        done = each.end
    template += sentence[done:]
    if SLOT not in template:
        raise InputError(
            f"prompts: {shown(sentence)} does not hold the concept {shown(concept)}; "
            f'add it, or write "{SLOT}" in its place'
        )
    return template


def shuffle(rng: np.random.Generator, template: str) -> str:
    """Put the words in random order. "{}" counts as one word, so the concept moves as a whole."""
    words = template.split()
    return " ".join(words[i] for i in rng.permutation(len(words)))


def phrase(template: str, word: str) -> str:
    """Fill a template: the word replaces "{}", its plural "{}s".

    A preceding article is adapted to the word: "a {}" and "an {}" give "an owl" and "a cat". An
    empty word removes "{}".
    """
    if not word:
        return leave_out(template, "")
    template = re.sub(
        rf"\b(a)n?(\s+{OPENING}){SLOT_PATTERN}",
        lambda match: f"{_article(match[1], word)}{match[2]}{SLOT}",
        template,
        flags=re.IGNORECASE,
    )
    template = re.sub(rf"{SLOT_PATTERN}s(?!\w)", lambda _: plural(word), template)
    return template.replace(SLOT, word)


def leave_out(template: str, part_of_speech: str = "noun") -> str:
    """Remove the concept from a sentence: the noun, or adjective, at "{}".

    Args:
        template: a sentence with "{}".
        part_of_speech: part of speech of the concept. A noun is removed together with its article,
            determiner or number. Any other word leaves its article to the following noun.
    """
    if part_of_speech == "noun":
        return _closed(re.sub(rf"(?:\b{DETERMINERS}\s+)?{ATTACHED}", " ", template, flags=re.I))
    template = re.sub(
        rf"\b(a)n?\s+{ATTACHED}\s*(?!{CONNECTING}\b)(\w\S*)",
        lambda match: f"{_article(match[1], match[2])} {match[2]}",
        template,
        flags=re.IGNORECASE,
    )
    return _closed(re.sub(rf"(?:\ban?\s+)?{ATTACHED}", " ", template, flags=re.IGNORECASE))


def _article(letter: str, word: str) -> str:
    """Article of a word, starting with the given letter to preserve its case."""
    return letter + article(word)[1:]


def _closed(text: str) -> str:
    """Clean up spaces and punctuation after removing words from a sentence."""
    text = re.sub(r"\s+([,.;:!?])", r"\1", " ".join(text.split())).lstrip(" ,;:")
    return text if re.search(r"\w", text) else ""


def draw_groups(
    rng: np.random.Generator,
    prompts: Sequence[str],
    concept: str,
    others: Sequence[str],
    *,
    count: int,
    shuffled: float,
) -> list[Group]:
    """Generate sentences with the concept, each also with other words in its place.

    Args:
        rng: random number generator.
        prompts: sentences or templates, used in turn.
        concept: the concept.
        others: words to replace it in further forms.
        count: number of sentences.
        shuffled: probability that a sentence's words are put into random order.

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
