"""Parse overrides on the command line: notations of lists, and a change of the concept.

Words in a list are separated by commas, `--config.synonyms=football,ball`. Sentences may contain
commas, so `--config.prompts="a {}, drawn"` is one sentence. Both may be repeated, once per entry,
and both accept Python's notation, `--config.synonyms="('football', 'ball')"`; "()" is an empty
list.
"""

import ast
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from erase.config.fields import lists, shown
from erase.config.schema import Config
from erase.data.words.spelling import mentions
from flux_jax.errors import InputError

# Fields with sentences; all other lists have words.
SENTENCES = ("prompts", "templates")
# Fields that are specific to a concept, even if they do not mention it.
CHOSEN_FOR = (
    "kind",
    "synonyms",
    "part_of_speech",
    "sense",
    "irrelevant",
    "evaluation.others",
    "meta_unlearning.related",
)
# Fields with sentences or words that may mention it.
MAY_NAME = (*SENTENCES, "erase_to", "stand_in", "anchor", "guide", "keep")
# Values of fields that are not set.
UNSET = (None, "", (), Config.part_of_speech)
# Marks a removed value.
_GONE = object()


def joined_lists(arguments: Sequence[str], flag: str, config: type) -> list[str]:
    """Merge the overrides of each list into one, in Python's notation of a tuple.

    Args:
        arguments: command-line arguments.
        flag: name of the configuration's flag.
        config: dataclass of the configuration.

    Raises:
        InputError: a list is ambiguous or cannot be parsed.
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
    """Parse the words or sentences of one override.

    Args:
        name: name of the field.
        text: text after the equals sign.

    Raises:
        InputError: the list is ambiguous or cannot be parsed.
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
        raise InputError(f"{name} = {shown(text)} has an entry that is not text: {mend}")
    if not text.strip() or text.strip() in ("None", "True", "False"):
        raise InputError(f"{name} = {shown(text)} names nothing: {mend}")
    # Starts like Python's notation, but is not valid.
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
    """Remove the values of a configuration that were meant for another concept.

    Removed are the fields specific to the former concept: synonyms, words for other things,
    concepts that should stay. Sentences and words are removed if they mention the former concept
    or one of its synonyms, or if they mention the present concept but were meant for other things.
    Removed fields get their defaults.

    Args:
        values: the file's nested values, with the concept of the command line.
        former: the file's concept.
        changed: fields changed on the command line, by their paths; these are not removed.
        known: paths of all fields; values of unknown fields are not removed, and reported later.

    Returns:
        The values, and the paths of the removed fields.
    """
    synonyms = values.get("synonyms") or ()
    old = [former, *(synonyms if "synonyms" not in changed else ())]
    gone: list[str] = []

    def kept(path: str, value: Any) -> Any:
        """The value, without its removed entries."""
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
                # The sections of `by_method` repeat the top-level fields.
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
    """Whether a text mentions one of the words; False if it is not text."""
    if not isinstance(text, str):
        return False
    return any(
        bool(mentions(text, word)) for word in words if isinstance(word, str) and word.strip(" _-")
    )
