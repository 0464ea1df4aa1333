"""Other words for the concept, c_syn: the configuration's, else WordNet's through NLTK.

The whole database is used where NLTK finds one (`NLTK_DATA`); else a subset that ships with this
package, `wordnet.json`, made from WordNet 3.1 by

    NLTK_DATA=~/nltk_data python -m erase.synonyms tabby

which adds the words that it is given. WordNet's licence stands in it. Both answer alike: a concept
means its first, most frequent, sense.
"""

import contextlib
import dataclasses
import json
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import nltk
from absl import app
from nltk.corpus.reader.wordnet import WordNetCorpusReader, WordNetError

from convert.errors import InputError, exits_cleanly
from erase.command import parse_flags, quiet
from erase.config import Config
from erase.pictures import write

SUBSET = Path(__file__).with_name("wordnet.json")
# How NLTK calls the parts of speech.
TAGS = {"noun": "n", "adjective": "a", "verb": "v"}


def settle(config: Config) -> tuple[Config, str]:
    """The configuration with synonyms, and where they come from.

    Raises:
        InputError: L_rsc needs a synonym, and neither the configuration nor WordNet has one.
    """
    if config.synonyms or not config.upper.rsc:
        return config, "the configuration"
    names, source = look_up(config.concept, config.part_of_speech)
    words = clean(names, config.concept, config.irrelevant)
    if not words and config.contrasts:
        known = "has no other word for it" if names else "does not know it"
        raise InputError(
            f"concept = {config.concept!r}: {source} {known} as {_article(config.part_of_speech)}; "
            "name synonyms, give another part_of_speech, point NLTK_DATA to a whole WordNet, "
            "or set upper.rsc to 0"
        )
    return dataclasses.replace(config, synonyms=words), source


def look_up(concept: str, part_of_speech: str) -> tuple[tuple[str, ...], str]:
    """WordNet's names for the first sense of a word, and which WordNet it was.

    Args:
        concept: one or more words.
        part_of_speech: a key of `TAGS`.

    Returns:
        Names as WordNet writes them, the concept's own among them; none if it is unknown.

    Raises:
        InputError: the database that NLTK found is damaged.
    """
    place = database()
    if place is None:
        known = json.loads(SUBSET.read_text())["senses"][part_of_speech]
        names = known.get(_lemma(concept), ())
        return tuple(names), "the WordNet subset that ships with erase"
    try:
        with opened(place) as reader:
            return first_sense(reader, concept, part_of_speech), f"WordNet at {place}"
    except (OSError, ValueError, AssertionError, LookupError, WordNetError) as error:
        raise InputError(
            f"NLTK_DATA: WordNet at {place} is damaged ({type(error).__name__}); install it again"
        ) from error


def database() -> Any | None:
    """Where NLTK finds WordNet: a pointer to its folder or zip file, or None."""
    for name in ("corpora/wordnet", "corpora/wordnet.zip/wordnet/"):
        try:
            return nltk.data.find(name)
        except LookupError:
            continue
    return None


@contextlib.contextmanager
def opened(place: Any) -> Iterator[WordNetCorpusReader]:
    """The database at a place that `database` gave; reading its indices takes seconds."""
    with warnings.catch_warnings():
        # Only English is asked for.
        warnings.filterwarnings("ignore", message="The multilingual functions")
        reader = WordNetCorpusReader(place, None)
    try:
        yield reader
    finally:
        # The reader has no way to close what it opened.
        for file in reader._data_file_map.values():
            file.close()


def first_sense(reader: WordNetCorpusReader, concept: str, part_of_speech: str) -> tuple[str, ...]:
    """Names of the first synset that the word is in."""
    first = next(iter(reader.synsets(_lemma(concept), TAGS[part_of_speech])), None)
    return tuple(first.lemma_names()) if first else ()


def clean(names: Iterable[str], concept: str, others: Sequence[str] = ()) -> tuple[str, ...]:
    """Words that can stand in a sentence in the concept's place, once each.

    Args:
        names: as WordNet writes them.
        concept: no synonym may be or hold it, as "nude painting" holds "nude".
        others: words that the configuration means to keep.
    """
    kept = {word.casefold() for word in others}
    words = (name.replace("_", " ") for name in names)
    own = re.compile(rf"\b{re.escape(' '.join(concept.split()))}\b", re.IGNORECASE)
    return tuple(dict.fromkeys(w for w in words if not own.search(w) and w.casefold() not in kept))


def _lemma(concept: str) -> str:
    return "_".join(concept.casefold().split())


def _article(part_of_speech: str) -> str:
    return f"{'an' if part_of_speech[0] in 'aeiou' else 'a'} {part_of_speech}"


@exits_cleanly
def main(words: Sequence[str]) -> None:
    """Writes the subset anew: its present words, and those that are given."""
    quiet()
    place = database()
    if place is None:
        raise InputError("NLTK_DATA: NLTK finds no WordNet; name the folder that has corpora/")
    subset = json.loads(SUBSET.read_text())
    with opened(place) as reader:
        for part, known in subset["senses"].items():
            asked = sorted({*known, *map(_lemma, words[1:])})
            found = {word: first_sense(reader, word, part) for word in asked}
            subset["senses"][part] = {word: names for word, names in found.items() if names}
    write(SUBSET, json.dumps(subset, indent=1) + "\n")


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
