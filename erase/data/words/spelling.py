"""Find where a text mentions a concept, in any case and spelling that a reader would recognize.

The concept's words are matched as whole words. These differences are allowed:

- case, and Unicode compatibility forms, as in T5's tokenizer: full-width letters, ligatures,
  combining accents;
- curly quotes, kinds of hyphens, and zero-width characters;
- the separators between words: spaces, line breaks, hyphens, underscores or nothing
  ("soccer-ball", "soccerball"), both in the concept and in the text;
- the ending: a plural ("cats", "boxes", "butterflies", "knives", "women"), a possessive ("cat's"),
  "like" ("catlike"), a last letter that is doubled or repeated ("catt", "soccerrrs"), and any
  letter three times or more ("nuderrr");
- an attached number ("3cats", "Boeing747").

Anything else is another word: "caterpillar", "concatenate" and "bobcat" do not mention a cat.
"""

import functools
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass

from erase.config.fields import shown
from erase.data.words.english import plurals
from flux_jax.errors import InputError

QUOTES = dict.fromkeys(map(ord, "‘’‛ʼ´`＇"), "'")
HYPHENS = dict.fromkeys(map(ord, "‐‑‒–−"), "-")
# T5's tokenizer treats most of them as spaces.
WIDTHLESS = "\u00ad\u200b\u200c\u200d\u200e\u200f\u2060\ufeff"
GAP = r"[\s_-]"


@dataclass(frozen=True)
class Mention:
    """One mention of a concept in a text.

    Attributes:
        start: index of its first character.
        stop: index after the concept without its ending; after the whole word if the plural
            changes the word.
        end: index after the word, including its ending.
        plural: whether it is a plural.
        ending: "like" or a number that follows the concept; "" for other endings.
    """

    start: int
    stop: int
    end: int
    plural: bool = False
    ending: str = ""


def mentions(text: str, concept: str) -> list[Mention]:
    """Find all mentions of a concept in a text, in order; see the module's docstring.

    Args:
        text: a prompt.
        concept: one word or several.

    Raises:
        InputError: the concept is empty.
    """
    pattern, last = _pattern(concept)
    found: dict[int, Mention] = {}
    # Zero-width characters may separate words or be inside one.
    for dropped in (False, True) if set(WIDTHLESS) & set(text) else (False,):
        letters, spans = _folded(text, dropped)
        for start, stop, end, plural in _matches(letters, pattern, last):
            place = spans[start][0], spans[stop - 1][1], spans[end - 1][1]
            rest = letters[stop:end]
            ending = rest if rest == "like" or rest.isdigit() else ""
            found.setdefault(place[0], Mention(*place, plural, ending))
    return [found[start] for start in sorted(found)]


def same(word: str, concept: str) -> bool:
    """Whether a word is exactly the concept, in any of its forms.

    Raises:
        InputError: the concept is empty.
    """
    word = word.strip()
    return any((each.start, each.end) == (0, len(word)) for each in mentions(word, concept))


def _matches(
    letters: str, pattern: re.Pattern[str], last: str
) -> Iterator[tuple[int, int, int, bool]]:
    """Matches of the concept: start, stop, end of its word, and whether it is a plural."""
    at = 0
    while match := pattern.search(letters, at):
        start, stop = match.span()
        rest = _run(letters, stop) if _letter(letters[stop - 1]) else ""
        changed = match[1] != last
        if _starts(letters, start) and _may_follow(rest, "" if changed else last):
            plural = changed or (rest.endswith("s") and not re.match(r"(.)\1\1", rest))
            yield start, stop, stop + len(rest), plural
            at = stop + len(rest)
        else:
            at = start + 1


def _letter(character: str) -> bool:
    """Whether it is a letter, a digit or a combining accent."""
    return character.isalnum() or unicodedata.category(character)[0] == "M"


def _run(letters: str, start: int) -> str:
    """The letters and digits that follow immediately."""
    stop = start
    while stop < len(letters) and _letter(letters[stop]):
        stop += 1
    return letters[start:stop]


def _starts(letters: str, start: int) -> bool:
    """Whether a word starts there: not after a letter, except after a separate number."""
    if not _letter(letters[start]):
        return True
    before = start
    while before and letters[before - 1].isdigit() and not letters[start].isdigit():
        before -= 1
    return before == 0 or not _letter(letters[before - 1])


def _may_follow(rest: str, word: str) -> bool:
    """Whether letters may follow a word without changing it; an empty word allows none."""
    if not rest:
        return True
    if not word:
        return False
    if rest.isdigit():
        return not word[-1].isdigit()
    if rest in ("s", "like"):
        return True
    if rest == "es":
        return word.endswith(("s", "x", "z", "ch", "sh", "o"))
    if rest == f"{word[-1]}es":
        return word.endswith(("s", "z"))
    # Doubling makes another word of one or two letters: "of" and "off", "be" and "bee".
    drawn = len(word) > 2 and re.fullmatch(rf"{re.escape(word[-1])}+s?", rest)
    return bool(drawn or re.fullmatch(r"(.)\1\1+s?", rest))


@functools.lru_cache(maxsize=1000)
def _pattern(concept: str) -> tuple[re.Pattern[str], str]:
    """Pattern for folded text, whose first group is the concept's last word; and that word.

    Raises:
        InputError: the concept is empty.
    """
    # Leading and trailing separators are dropped: spaces of any kind, line breaks.
    words = [word for word in re.split(rf"{GAP}+", _folded(concept)[0]) if word]
    if not words:
        raise InputError(f"concept = {shown(concept)} is empty: name the concept to erase")
    *first, last = words
    # An ending within the concept needs a separator after it, so that every match is unambiguous.
    parts = [rf"{re.escape(word)}(?:(?>{re.escape(word[-1])}*s?){GAP}++|{GAP}*+)" for word in first]
    forms = "|".join(map(re.escape, (last, *sorted(plurals(last)))))
    return re.compile(f"{''.join(parts)}({forms})"), last


def _folded(text: str, dropped: bool = False) -> tuple[str, list[tuple[int, int]]]:
    """Normalize a text, and return the span of each result character in the original.

    Args:
        text: any text.
        dropped: whether to drop zero-width characters; else they become spaces.
    """
    letters, spans, start = [], [], 0
    while start < len(text):
        stop = start + 1
        while stop < len(text) and unicodedata.combining(text[stop]):
            stop += 1
        part = text[start:stop]
        if part[0] in WIDTHLESS:
            part = ("" if dropped else " ") + part[1:]
        part = unicodedata.normalize("NFKD", part.translate(QUOTES).translate(HYPHENS))
        part = unicodedata.normalize("NFKD", part.casefold())
        letters.append(part)
        spans += [(start, stop)] * len(part)
        start = stop
    return "".join(letters), spans
