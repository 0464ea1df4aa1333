"""Two rules of English for sentences: "a" or "an", and the plural of a noun."""

import re
import unicodedata

# Letters whose names begin with a vowel, as in "an X-ray".
SPOKEN_VOWELS = "aefhilmnorsx"
# Words that begin with a vowel but sound like "you" or "one".
YOU_OR_ONE = re.compile(
    r"eu|ewe|oui|once?\b|one\b|u(?:\W|$)|uni(?!n|m|dent|ghted)|unan|us[aeu]|us$|ut[aeio]|ur[aeio]"
    r"|ubi|ufo|uga|uk|uv|uav"
)
# Words with a silent "h".
SILENT_H = re.compile(r"hour|hono|honest|heir")
NUMBERS = re.compile(r"8|(?:11|18)(?!\d)")
# Abbreviations that are spelt out, though some could be read as words.
SPELT = re.compile(r"[B-DF-HJ-NP-TV-XZ\d]+|[FLMNR][BCDFGHJKMNPQSTVWXZ].*|FBI|LED|MRI|SUV")
# Irregular plurals, by the end of the noun.
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
# Nouns whose "f" becomes "ves"; in others, such as "roof", it does not.
VES = (
    "calf", "elf", "half", "hoof", "knife", "leaf", "life", "loaf", "scarf", "self", "sheaf",
    "shelf", "thief", "wife", "wolf", "dwarf",
)  # fmt: skip
OES = ("buffalo", "echo", "hero", "mango", "mosquito", "potato", "tomato", "torpedo", "volcano")


def article(word: str) -> str:
    """Indefinite article by sound: "an apple", "an hour", "a unicorn", "an X-ray".

    Args:
        word: the following words, one or several.
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
    """Plural of a noun; of several words, the last one changes.

    Words that are already plural, such as "scissors", do not change.
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
    """Plurals of a lower-case noun, besides those that add "s" or "es"."""
    forms = {plural(noun), re.sub(r"(?<=\w{4})us$", "i", noun)}
    return {form for form in forms if not form.startswith(noun)}
