"""Generate random captions for the world of emoji-flux, with their labels.

A caption is a pure function of a NumPy generator. Entities, styles, background colours and
relations are indices into the tuples of `world`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
from jaxtyping import Bool

from recipes.emoji_flux.world import (
    BACKGROUNDS,
    ENTITIES,
    IRREGULAR_PLURALS,
    NO_ARTICLE,
    RELATIONS,
    STYLES,
    SYMMETRIC,
)

Form = Literal["style", "single", "and", "relation"]
FORMS: tuple[Form, ...] = ("style", "single", "and", "relation")
FORM_CHANCES = (0.05, 0.40, 0.15, 0.40)
CANONICAL = 0.6
MISSPELT = 0.1
SHUFFLED = 0.15
CAPITAL = 0.15
STYLE_CLAUSE = {"style": 1.0, "single": 0.5, "and": 0.35, "relation": 0.35}
BACKGROUND_CLAUSE = 0.25

# {x} includes the article, {X} does not.
SINGLE = (
    "a photo of {x}",
    "a photo of {x}",
    "{x}",
    "{X}",
    "an art of {x}",
    "an emoji of {x}",
    "a picture of {x}",
    "an image of {x}",
)
OPENINGS = ("", "", "a photo of ", "an art of ", "an emoji of ", "a picture of ", "an image of ")
PAIR = ("{x} and {y}", "{x} and {y}", "{x} with {y}", "{x} next to {y}", "{X} and {Y}")
STYLE_ALONE = (
    "an art in the style of {s}",
    "a picture in the style of {s}",
    "an emoji in the style of {s}",
    "{a_s} style emoji",
)
STYLE_ADDED = ("{text} in the style of {s}", "{text} in the style of {s}", "{text} in {s} style")
BACKGROUND_ADDED = ("{text} on {a_b} background", "{text} with {a_b} background")
RELATED: dict[str, tuple[str, ...]] = {
    "left of": ("{x} to the left of {y}", "{x} left of {y}"),
    "right of": ("{x} to the right of {y}", "{x} right of {y}"),
    "above": ("{x} above {y}", "{x} over {y}"),
    "below": ("{x} below {y}", "{x} under {y}", "{x} beneath {y}"),
    "in": ("{x} in {y}", "{x} inside {y}"),
    "on": ("{x} on {y}", "{x} on top of {y}"),
    "behind": ("{x} behind {y}",),
    "amidst": ("{x} amidst {ys}", "{x} among {ys}", "{x} surrounded by {ys}"),
    "back to back": ("{x} and {y} back to back", "{x} back to back with {y}"),
    "hugging close": ("{x} and {y} hugging close", "{x} hugging close to {y}"),
}
VOCABULARY = frozenset(word for entity in ENTITIES for word in entity.words)
COLOURS = tuple(BACKGROUNDS)

T = TypeVar("T")


@dataclass(frozen=True)
class Caption:
    """A caption and its labels.

    Attributes:
        text: the sentence.
        subject: first entity; for a sentence about a style alone, the entity shown.
        object: second entity, -1 if there is none.
        relation: of subject to object, -1 if the sentence states none.
        style: of the picture, whether or not the sentence states it.
        background: colour of the background, stated or not.
    """

    text: str
    subject: int
    object: int
    relation: int
    style: int
    background: int


def one_of(rng: np.random.Generator, options: Sequence[T]) -> T:
    """Choose one of the options uniformly."""
    return options[int(rng.random() * len(options))]


def with_article(words: str) -> str:
    """Add the indefinite article: 'a car', 'an airplane', 'grapes'."""
    if words in NO_ARTICLE:
        return words
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def plural(words: str) -> str:
    """Form the plural: 'cars', 'cherries', 'buses'."""
    if words in IRREGULAR_PLURALS:
        return IRREGULAR_PLURALS[words]
    if words in NO_ARTICLE:
        return words
    if words.endswith(("s", "x", "ch", "sh")):
        return f"{words}es"
    if words.endswith("y") and words[-2] not in "aeiou":
        return f"{words[:-1]}ies"
    return f"{words}s"


def misspell(rng: np.random.Generator, words: str) -> str:
    """Make a typing error in one of the words; the result is never another entity's name.

    A letter is doubled, two neighbours are swapped, one is left out, or the ending is repeated, as
    in 'soccerrrs'.
    """
    parts = words.split(" ")
    longest = [i for i, part in enumerate(parts) if len(part) > 2]
    index = one_of(rng, longest)
    word = parts[index]
    while True:
        kind, at = int(rng.integers(4)), int(rng.integers(len(word) - 1))
        if kind == 0:
            changed = word[: at + 1] + word[at:]
        elif kind == 1:
            changed = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
        elif kind == 2 and len(word) > 4:
            changed = word[: at + 1] + word[at + 2 :]
        else:
            changed = word + word[-1] * int(rng.integers(1, 4)) + one_of(rng, ("", "s"))
        result = " ".join([*parts[:index], changed, *parts[index + 1 :]])
        if changed != word and result not in VOCABULARY and changed not in VOCABULARY:
            return result


def shuffle(rng: np.random.Generator, text: str) -> str:
    """Shuffle the words."""
    words = text.split(" ")
    return " ".join(words[i] for i in rng.permutation(len(words)))


def draw_meaning(
    rng: np.random.Generator, available: Bool[np.ndarray, "E S"] | None
) -> tuple[Form, Caption]:
    """Sample a caption's labels; its text is empty.

    Args:
        rng: source of randomness.
        available: whether each entity has a drawing in each style; None if all have.
    """
    form = FORMS[int(np.searchsorted(np.cumsum(FORM_CHANCES), rng.random(), side="right"))]
    while True:
        subject, other = (int(i) for i in rng.integers(len(ENTITIES), size=2))
        style, background = int(rng.integers(len(STYLES))), int(rng.integers(len(BACKGROUNDS)))
        shown = [subject] if form in ("style", "single") else [subject, other]
        if len(set(shown)) == len(shown) and (available is None or available[shown, style].all()):
            break
    relation = int(rng.integers(len(RELATIONS))) if form == "relation" else -1
    return form, Caption(
        "", subject, shown[1] if len(shown) == 2 else -1, relation, style, background
    )


def draw(rng: np.random.Generator, available: Bool[np.ndarray, "E S"] | None = None) -> Caption:
    """Sample a caption.

    Args:
        rng: source of randomness.
        available: whether each entity has a drawing in each style; None if all have.
    """
    form, meaning = draw_meaning(rng, available)
    return Caption(
        write(rng, form, meaning),
        meaning.subject,
        meaning.object,
        meaning.relation,
        meaning.style,
        meaning.background,
    )


def write(rng: np.random.Generator, form: Form, meaning: Caption) -> str:
    """Write a sentence for the labels, with random synonyms, clauses, typing errors and order."""
    style, colour = STYLES[meaning.style], COLOURS[meaning.background]
    shown = [i for i in (meaning.subject, meaning.object) if i >= 0]
    words = [name(rng, i) for i in shown]
    symmetric = meaning.relation < 0 or RELATIONS[meaning.relation] in SYMMETRIC
    plurals = plural(words[-1])
    bare = [word in NO_ARTICLE for word in words]
    if rng.random() < MISSPELT:
        at = int(rng.integers(len(words)))
        words[at] = misspell(rng, words[at])
        plurals = words[-1] if at == len(words) - 1 else plurals
    clause = rng.random() < STYLE_CLAUSE[form]
    said = [word if alone else with_article(word) for word, alone in zip(words, bare, strict=True)]
    if clause and form == "single" and rng.random() < 0.3:
        said[0] = f"{with_article(style)} style {words[0]}"
        clause = False
    fields = {"x": said[0], "X": words[0], "y": said[-1], "Y": words[-1], "ys": plurals}
    if form == "style":
        template = one_of(rng, STYLE_ALONE)
        text, clause = template.format(s=style, a_s=with_article(style)), False
    elif form == "single":
        text = one_of(rng, SINGLE).format(**fields)
    elif form == "and":
        text = (one_of(rng, OPENINGS) + one_of(rng, PAIR)).format(**fields)
    else:
        template = one_of(rng, RELATED[RELATIONS[meaning.relation]])
        text = (one_of(rng, OPENINGS) + template).format(**fields)
    if clause:
        text = one_of(rng, STYLE_ADDED).format(text=text, s=style)
    if rng.random() < BACKGROUND_CLAUSE:
        text = one_of(rng, BACKGROUND_ADDED).format(text=text, a_b=with_article(colour))
    if symmetric and rng.random() < SHUFFLED:
        text = shuffle(rng, text)
    if rng.random() < CAPITAL:
        text = text[0].upper() + text[1:]
    return text


def name(rng: np.random.Generator, entity: int) -> str:
    """The entity's name, or one of its synonyms."""
    synonyms = ENTITIES[entity].synonyms
    if not synonyms or rng.random() < CANONICAL:
        return ENTITIES[entity].name
    return one_of(rng, synonyms)
