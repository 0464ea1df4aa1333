"""Where a text names a concept: in any case and spelling that a reader takes for it.

The concept's words are looked for as whole words. What may differ:

- case, and forms of letters that Unicode calls compatible, as T5's tokenizer does: full-width
  letters, ligatures, accents that are characters of their own;
- curly quotes, kinds of hyphens, and characters without width;
- what stands between the words: spaces, line breaks, hyphens, underscores or nothing
  ("soccer-ball", "soccerball"), in the concept as in the text;
- the end of the word: a plural ("cats", "boxes", "butterflies", "knives", "women"), a possessive
  ("cat's"), "like" ("catlike"), a last letter that is doubled or drawn out ("catt", "soccerrrs")
  and any letter three times or more ("nuderrr");
- a number that is written together with it ("3cats", "Boeing747").

All else is another word: "caterpillar", "concatenate" and "bobcat" name no cat.
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
# T5's tokenizer takes most of them for spaces.
WIDTHLESS = "\u00ad\u200b\u200c\u200d\u200e\u200f\u2060\ufeff"
GAP = r"[\s_-]"


@dataclass(frozen=True)
class Mention:
    """One place where a text names a concept.

    Attributes:
        start: its first character.
        stop: after the last one of the concept itself; of all where the plural changes the word.
        end: after the last one of the word, its ending included.
        plural: whether it is one.
        ending: "like" or a number that goes on after the concept; most endings say no more.
    """

    start: int
    stop: int
    end: int
    plural: bool = False
    ending: str = ""


def mentions(text: str, concept: str) -> list[Mention]:
    """All places where a text names a concept, in their order; see the module's docstring.

    Args:
        text: a prompt.
        concept: of one word or several.

    Raises:
        InputError: the concept is empty.
    """
    pattern, last = _pattern(concept)
    found: dict[int, Mention] = {}
    # Characters without width may part words or stand within one.
    for dropped in (False, True) if set(WIDTHLESS) & set(text) else (False,):
        letters, spans = _folded(text, dropped)
        for start, stop, end, plural in _matches(letters, pattern, last):
            place = spans[start][0], spans[stop - 1][1], spans[end - 1][1]
            rest = letters[stop:end]
            ending = rest if rest == "like" or rest.isdigit() else ""
            found.setdefault(place[0], Mention(*place, plural, ending))
    return [found[start] for start in sorted(found)]


def same(word: str, concept: str) -> bool:
    """Whether a word is nothing but the concept, in any of its forms.

    Raises:
        InputError: the concept is empty.
    """
    word = word.strip()
    return any((each.start, each.end) == (0, len(word)) for each in mentions(word, concept))


def _matches(
    letters: str, pattern: re.Pattern[str], last: str
) -> Iterator[tuple[int, int, int, bool]]:
    """Where the concept starts and stops, where its word ends, and whether it is a plural."""
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
    """Whether it is a letter, a digit, or an accent on one."""
    return character.isalnum() or unicodedata.category(character)[0] == "M"


def _run(letters: str, start: int) -> str:
    """The letters and digits that follow without a gap."""
    stop = start
    while stop < len(letters) and _letter(letters[stop]):
        stop += 1
    return letters[start:stop]


def _starts(letters: str, start: int) -> bool:
    """Whether a word starts there: after no letter, or after nothing but a number."""
    if not _letter(letters[start]):
        return True
    before = start
    while before and letters[before - 1].isdigit() and not letters[start].isdigit():
        before -= 1
    return before == 0 or not _letter(letters[before - 1])


def _may_follow(rest: str, word: str) -> bool:
    """Whether a word is still itself with these letters after it; none may follow no word."""
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
    # In words of one or two letters that is another one: "of" and "off", "be" and "bee".
    drawn = len(word) > 2 and re.fullmatch(rf"{re.escape(word[-1])}+s?", rest)
    return bool(drawn or re.fullmatch(r"(.)\1\1+s?", rest))


@functools.lru_cache(maxsize=1000)
def _pattern(concept: str) -> tuple[re.Pattern[str], str]:
    """A pattern of a folded text, whose first group is the last word; and that word.

    Raises:
        InputError: the concept is empty.
    """
    # Whatever it begins or ends with that is no word is left out: spaces of any sort, line ends.
    words = [word for word in re.split(rf"{GAP}+", _folded(concept)[0]) if word]
    if not words:
        raise InputError(f"concept = {shown(concept)} is empty: name what is to be erased")
    *first, last = words
    # An ending in the middle needs a gap after it; so each text is read in one way only.
    parts = [rf"{re.escape(word)}(?:(?>{re.escape(word[-1])}*s?){GAP}++|{GAP}*+)" for word in first]
    forms = "|".join(map(re.escape, (last, *sorted(plurals(last)))))
    return re.compile(f"{''.join(parts)}({forms})"), last


def _folded(text: str, dropped: bool = False) -> tuple[str, list[tuple[int, int]]]:
    """The text in its simplest form, and where each of its characters stands in the text.

    Args:
        text: any.
        dropped: whether characters without width are left out; else they are spaces.
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
