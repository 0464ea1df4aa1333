"""Sentences about a concept: templates, word shuffles, and other words in the concept's place.

Everything random is a pure function of a NumPy generator.
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
# What may stand between an article and its word.
OPENING = r"[\"'(“‘]*"
# "{}" with what makes one word with it, as in "{}s", "{}'s" and "{}-like".
ATTACHED = rf"(?:[\"'(“‘]{SLOT_PATTERN}[\"')”’]|{SLOT_PATTERN}(?:['’]?s\b['’]?|-?like\b)?)"
# They go where their noun goes.
DETERMINERS = (
    "(?:an?|the|this|that|these|those|one|two|three|four|five|six|seven|eight|nine|ten|some|many|"
    "several|few)"
)
# No article can stand before one of these.
CONNECTING = (
    "(?:and|or|but|with|of|in|on|at|by|for|from|to|into|onto|over|under|above|below|behind|beside|"
    "between|near|next|inside|outside|is|are|was|were|that|who|which|as)"
)


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
    """Puts "{}" in the concept's place, at every occurrence; "{}s" in that of its plural.

    Args:
        sentence: a sentence with the concept, in any form that `erase.data.words.spelling` lists,
            or a template that has "{}" already.
        concept: one word or several.

    Raises:
        InputError: the sentence has neither.
    """
    template, done = "", 0
    for each in mentions(sentence, concept):
        template += sentence[done : each.start] + SLOT + ("s" if each.plural else each.ending)
        done = each.end
    template += sentence[done:]
    if SLOT not in template:
        raise InputError(
            f"prompts: {shown(sentence)} does not hold the concept {shown(concept)}; "
            f'name it there or write "{SLOT}" in its place'
        )
    return template


def shuffle(rng: np.random.Generator, template: str) -> str:
    """The same words in another order; "{}" is one of them, so a concept moves as a whole."""
    words = template.split()
    return " ".join(words[i] for i in rng.permutation(len(words)))


def phrase(template: str, word: str) -> str:
    """Puts a word at a template's "{}", and its plural at "{}s".

    An article before it follows the word: "a {}" and "an {}" give "an owl" and "a cat". An empty
    word leaves the place out.
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
    """The sentence without the concept: "a photo of {}" without its noun, or its adjective.

    Args:
        template: a sentence with "{}".
        part_of_speech: of the concept; a noun takes its article along, or a number. Any other word
            leaves its article to the noun after it.
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
    """The article before a word, its first letter as given."""
    return letter + article(word)[1:]


def _closed(text: str) -> str:
    """A sentence that something was left out of, without the gaps."""
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
