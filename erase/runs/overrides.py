"""What overrides on the command line say: lists in several ways of writing, and another concept.

A list of words takes commas, `--config.synonyms=football,ball`; sentences may hold commas, so that
`--config.prompts="a {}, drawn"` is one. Both may be repeated, once for each, and both take Python's
own writing, `--config.synonyms="('football', 'ball')"`; "()" is an empty list.
"""

import ast
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from erase.config.fields import lists, shown
from erase.config.schema import Config
from erase.data.words.spelling import mentions
from flux_jax.errors import InputError

# Fields that hold sentences; all other lists are of words.
SENTENCES = ("prompts", "templates")
# What was chosen for a concept, even where it does not name it.
CHOSEN_FOR = (
    "kind",
    "synonyms",
    "part_of_speech",
    "sense",
    "irrelevant",
    "evaluation.others",
    "meta_unlearning.related",
)
# Sentences or words that may name it.
MAY_NAME = (*SENTENCES, "erase_to", "stand_in", "anchor", "guide", "keep")
# Values that fields have where nobody chose any.
UNSET = (None, "", (), Config.part_of_speech)
# In the place of a value that is left out.
_GONE = object()


def joined_lists(arguments: Sequence[str], flag: str, config: type) -> list[str]:
    """The arguments with each list as one override, as Python writes a tuple.

    Args:
        arguments: of the command line.
        flag: the configuration's.
        config: the dataclass that it fills.

    Raises:
        InputError: a list can be read in two ways, or in none.
    """
    known, kept, values, places = set(lists(config)), [], {}, {}
    rest = iter(arguments)
    for argument in rest:
        named = re.fullmatch(rf"--?{flag}\.([^=]+)(?:=(.*))?", argument, re.DOTALL)
        if named is None or named[1] not in known:
            kept.append(argument)
            continue
        name, text = named[1], named[2]
        if text is None and (text := next(rest, None)) is None:
            kept.append(argument)
            continue
        places.setdefault(name, len(kept))
        if name not in values:
            kept.append("")
        values.setdefault(name, []).extend(read_list(name, text))
    for name, at in places.items():
        kept[at] = f"--{flag}.{name}={tuple(values[name])!r}"
    return kept


def read_list(name: str, text: str) -> tuple[str, ...]:
    """The words or sentences of one override.

    Args:
        name: of the field.
        text: what follows the equals sign.

    Raises:
        InputError: they can be read in two ways, or in none.
    """
    sentences = name.rpartition(".")[2] in SENTENCES
    mend = "give one sentence, and repeat the flag for more" if sentences else "write one,two"
    mend += ", or quote each as in \"('one', 'two')\"; () is an empty list"
    try:
        value = ast.literal_eval(text.strip())
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        value = None
    if isinstance(value, str):
        return (value,)
    if isinstance(value, tuple | list):
        if all(isinstance(each, str) for each in value):
            return tuple(value)
        raise InputError(f"{name} = {shown(text)} holds what is no text: {mend}")
    if not text.strip() or text.strip() in ("None", "True", "False"):
        raise InputError(f"{name} = {shown(text)} names nothing: {mend}")
    # Begins as Python's writing does, and is none.
    broken = r"[(\[]\s*['\"]" if sentences else r"[(\[{]"
    if re.match(broken, text.strip()):
        raise InputError(f"{name} = {shown(text)} cannot be read as a list: {mend}")
    if sentences:
        return (text,)
    words = tuple(word.strip() for word in text.split(","))
    if not all(words) or any(word[0] in "'\"" and word[-1] == word[0] for word in words):
        raise InputError(f"{name} = {shown(text)} has a word that is empty or in quotes: {mend}")
    return words


def of_another_concept(
    values: Mapping[Any, Any], former: str, changed: Mapping[Any, Any], known: Collection[str]
) -> tuple[dict[Any, Any], list[str]]:
    """A configuration without the words that were meant for another concept.

    What was chosen for the former concept is left out: synonyms, words for other things, concepts
    that should stay. So are sentences and words that name it, one of its synonyms, or the present
    concept, where they stood for something else. The defaults follow for what is left out.

    Args:
        values: the file's, with the concept that the command line gives, nested.
        former: the file's concept.
        changed: fields that the command line changes, by their paths; these stay.
        known: names of all fields; others are kept, to be told of later.

    Returns:
        The values, and the paths of what was left out.
    """
    synonyms = values.get("synonyms") or ()
    old = [former, *(synonyms if "synonyms" not in changed else ())]
    gone: list[str] = []

    def kept(path: str, value: Any) -> Any:
        """The value, or what is left of it."""
        name = path.rpartition(".")[2]
        belongs = path in CHOSEN_FOR
        if path in changed or not (belongs or name in MAY_NAME) or value in UNSET:
            return value
        if belongs:
            return _GONE
        if isinstance(value, str):
            return _GONE if _names(value, [*old, values["concept"]]) else value
        if not isinstance(value, tuple | list):
            return value
        own = path in ("prompts", "evaluation.templates")
        words = old if own else [*old, values["concept"]]
        left = tuple(each for each in value if not _names(each, words))
        return left or _GONE

    def walked(part: Mapping[Any, Any], prefix: str, place: str) -> dict[Any, Any]:
        made = {}
        for name, value in part.items():
            path = f"{prefix}{name}"
            if isinstance(value, Mapping):
                # What methods differ in repeats the fields of all.
                below = "" if prefix == "by_method." else f"{path}."
                made[name] = walked(value, below, f"{place}{name}.")
            else:
                left = kept(path, value) if path in known else value
                if left is not _GONE:
                    made[name] = left
                if left != value:
                    gone.append(f"{place}{name}")
        return made

    left = walked(values, "", "")
    return left, sorted(gone, key=lambda path: path.startswith("by_method."))


def _names(text: Any, words: Sequence[Any]) -> bool:
    """Whether a text names one of some words; what is no text names none."""
    if not isinstance(text, str):
        return False
    return any(
        bool(mentions(text, word)) for word in words if isinstance(word, str) and word.strip(" _-")
    )
