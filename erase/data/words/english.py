"""Two rules of English that sentences need: "a" or "an", and a noun's plural."""

import re
import unicodedata

# Letters whose names begin with a vowel, as in "an X-ray".
SPOKEN_VOWELS = "aefhilmnorsx"
# Words that begin with the sound of "you" or of "one", though a vowel is written.
YOU_OR_ONE = re.compile(
    r"eu|ewe|oui|once?\b|one\b|u(?:\W|$)|uni(?!n|m|dent|ghted)|unan|us[aeu]|us$|ut[aeio]|ur[aeio]"
    r"|ubi|ufo|uga|uk|uv|uav"
)
# An "h" that is not spoken.
SILENT_H = re.compile(r"hour|hono|honest|heir")
NUMBERS = re.compile(r"8|(?:11|18)(?!\d)")
# Read letter by letter, though they could be spoken.
SPELT = re.compile(r"[B-DF-HJ-NP-TV-XZ\d]+|[FLMNR][BCDFGHJKMNPQSTVWXZ].*|FBI|LED|MRI|SUV")
# Plurals of words, and of those that end like them.
IRREGULAR = {
    r"child$": "children",
    r"foot$": "feet",
    r"\bgoose$": "geese",
    r"\blouse$": "lice",
    r"(?<!hu)(?<!ger)(?<!\bro)(?<!sha)(?<!talis)(?<!otto)man$": "men",
    r"\bmouse$": "mice",
    r"\box$": "oxen",
    r"person$": "people",
    r"tooth$": "teeth",
}
UNCHANGED = ("deer", "fish", "sheep", "aircraft", "spacecraft", "species", "series", "moose")
# Their "f" becomes "ves"; others', as of "roof", does not.
VES = (
    "calf", "elf", "half", "hoof", "knife", "leaf", "life", "loaf", "scarf", "self", "sheaf",
    "shelf", "thief", "wife", "wolf", "dwarf",
)  # fmt: skip
OES = ("buffalo", "echo", "hero", "mango", "mosquito", "potato", "tomato", "torpedo", "volcano")


def article(word: str) -> str:
    """The indefinite article by the word's sound: "an apple", "an hour", "a unicorn", "an X-ray".

    Args:
        word: what follows it, of one word or several.
    """
    match = re.search(r"\w+", unicodedata.normalize("NFKD", word))
    if not match:
        return "a"
    spelt = SPELT.fullmatch(match[0])
    rest = match.string[match.start() :].lower()
    if re.match(r"[a-z](?![a-z])", rest) or (spelt and rest[0].isalpha()):
        vowel = rest[0] in SPOKEN_VOWELS
    elif rest[0] in "aeiou":
        vowel = not YOU_OR_ONE.match(rest)
    else:
        vowel = bool(SILENT_H.match(rest) or NUMBERS.match(rest))
    return "an" if vowel else "a"


def plural(noun: str) -> str:
    """A noun's plural; of several words, that of the last.

    Words that are plurals already, as "scissors", stay as they are.
    """
    low = noun.lower()
    if not low[-1:].isalpha() or low.endswith(UNCHANGED):
        return noun if low.endswith(UNCHANGED) else f"{noun}s"
    for end, changed in IRREGULAR.items():
        if match := re.search(end, low):
            # The first letter keeps its case.
            at = match.start()
            return noun[:at] + (changed.capitalize() if noun[at].isupper() else changed)
    if low.endswith(VES):
        return re.sub(r"fe?$", "ves", noun, flags=re.IGNORECASE)
    if re.search(r"[^aeiou\W]y$", low):
        return f"{noun[:-1]}ies"
    if low.endswith("quiz"):
        return f"{noun}zes"
    if re.search(r"(?:ss|us|as|sh|ch|x|z|lens)$", low) or low.endswith(OES):
        return f"{noun}es"
    return noun if low.endswith("s") else f"{noun}s"


def plurals(noun: str) -> set[str]:
    """Forms that a reader takes for plurals of a noun in small letters, beside "s" and "es"."""
    forms = {plural(noun), re.sub(r"(?<=\w{4})us$", "i", noun)}
    return {form for form in forms if not form.startswith(noun)}
