"""Synonyms of the concept, c_syn: from the configuration, the model, or WordNet by NLTK.

A word may have several senses in WordNet, and the first need not be what pictures show: that of
"turtle" is a jumper. The sense is chosen by the user (`Config.sense`), or is the nearest to things
that the model can draw. The whole database is used if NLTK finds one (`NLTK_DATA`); else
`wordnet.json`, a subset of WordNet 3.1 that ships with this package. The command

    NLTK_DATA=~/nltk_data erase-anything wordnet tabby

adds words to it. The file includes WordNet's licence.
"""

import contextlib
import dataclasses
import functools
import json
import re
import textwrap
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from erase.config import model_file
from erase.config.schema import Config
from flux_jax.errors import InputError

if TYPE_CHECKING:
    from nltk.corpus.reader.wordnet import WordNetCorpusReader

SUBSET = Path(__file__).with_name("wordnet.json")


# NLTK's names of the parts of speech.
TAGS = {"noun": "n", "adjective": "a", "verb": "v"}


# The nearness of a sense is its mean similarity to the NEAREST most similar things. It is weighted
# up for the word's most frequent sense, and down for each rarer one, if the word is not the sense's
# first name, and for cognition and feelings, which pictures do not show. Chosen on 95 nouns with
# the small model's things: 4 senses are wrong, against 10 by always taking the first sense.
NEAREST, FIRST, RARER, SECOND_NAME, UNSEEN = 5, 1.15, 0.96, 0.9, 0.8


THOUGHT = ("cognition.n.01", "feeling.n.01")


# Senses listed in a message, and the length of their definitions.
SHOWN, LETTERS = 3, 60


@dataclass(frozen=True)
class Sense:
    """A sense of a word, WordNet's synset.

    Attributes:
        name: WordNet's name, such as turtle.n.02.
        definition: short definition.
        words: words with this sense, in WordNet's spelling.
        above: names of its direct hypernyms, the next more general senses.
    """

    name: str
    definition: str = ""
    words: tuple[str, ...] = ()
    above: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.name}: {self.definition}"


@dataclass(frozen=True)
class WordNet:
    """An extract of WordNet for one part of speech.

    Attributes:
        source: source of the extract, in words.
        words: names of each word's senses, the most frequent first.
        senses: senses by name: all senses of these words, and all their hypernyms.
    """

    source: str
    words: Mapping[str, tuple[str, ...]]
    senses: Mapping[str, Sense]

    def of(self, word: str) -> list[Sense]:
        """Senses of a word; empty if it is unknown."""
        return [self.senses[name] for name in self.words.get(lemma(word), ())]

    def distances(self, sense: str) -> dict[str, int]:
        """Number of steps up to each hypernym, with the sense itself at 0."""
        distances, level, steps = {}, {sense}, 0
        while level:
            distances |= dict.fromkeys(level, steps)
            above = {name for each in level for name in self.senses[each].above}
            level, steps = above - distances.keys(), steps + 1
        return distances

    def likeness(self, one: str, other: str) -> float:
        """Wu-Palmer similarity in 0..1: depth of the common hypernym relative to the senses'."""
        ups, others = self.distances(one), self.distances(other)
        best = 0.0
        for name in ups.keys() & others.keys():
            depth = 1 + max(self.distances(name).values())
            best = max(best, 2 * depth / (2 * depth + ups[name] + others[name]))
        return best


def resolve_synonyms(config: Config, wanted: bool) -> tuple[Config, str]:
    """Fill in the synonyms of a configuration.

    Without synonyms, L_rsc leads only towards other things, and Acc_g is not counted.

    Args:
        config: the run's configuration.
        wanted: whether the run's method needs synonyms, so that missing ones are looked up.

    Returns:
        The configuration with synonyms, and their source, or the reason why there are none.

    Raises:
        InputError: the word has no such sense, or the database that NLTK found is damaged.
    """
    model = model_file.read(config.model.path)
    thing = model.find(config.concept) if model else None
    if config.synonyms or not wanted:
        own = config.synonyms and thing and set(config.synonyms) <= {*thing.names}
        return config, f"{config.model.path}" if own else "the configuration"
    things = [each.name for each in model.of_kind("entity")] if model else []
    synset_words, sense = look_up(config.concept, config.part_of_speech, config.sense, things)
    others = [
        word for each in (model.things if model else ()) if each != thing for word in each.names
    ]
    words = clean(sense.words if sense else (), config.concept, (*config.irrelevant, *others))
    source = f"{synset_words.source}, {sense}" if sense else synset_words.source
    if not sense:
        source += f", which does not know {config.concept!r} as {article(config.part_of_speech)}"
    if not words:
        source += " (no other word: L_rsc goes without, and Acc_g is not counted)"
    return dataclasses.replace(config, synonyms=words), source


def look_up(
    concept: str, part_of_speech: str, wanted: str | None = None, things: Sequence[str] = ()
) -> tuple[WordNet, Sense | None]:
    """Look up the sense of a word.

    Args:
        concept: one or more words.
        part_of_speech: a key of `TAGS`.
        wanted: number (from 1) or name of the sense; None chooses the nearest to `things`.
        things: names of things; if empty, things that are common in pictures.

    Returns:
        The extract of WordNet that was searched, and the sense; None if the word is unknown.

    Raises:
        InputError: the word has no such sense, or the database that NLTK found is damaged.
    """
    noun = part_of_speech == "noun"
    if noun and not things:
        things = subset()["pictured"]
    net = part([concept, *things] if noun else [concept], part_of_speech)
    senses = net.of(concept)
    if wanted is not None:
        return net, _wanted(senses, wanted, concept, part_of_speech, net.source)
    if len(senses) < 2 or not noun:
        return net, senses[0] if senses else None
    own = {sense.name for sense in senses}
    # Each thing counts by its most frequent sense; the concept itself is excluded.
    apart = {lemma(concept)}
    beside = [net.of(each)[0].name for each in things if lemma(each) not in apart and net.of(each)]
    beside = [name for name in dict.fromkeys(beside) if name not in own]

    def nearness(rank: int) -> float:
        sense = senses[rank]
        likenesses = sorted(net.likeness(sense.name, other) for other in beside)[-NEAREST:]
        near = sum(likenesses) / max(1, len(likenesses)) * RARER**rank
        # Case matters, since names of people are capitalized.
        named = sense.words[0] in ("_".join(concept.split()), lemma(concept))
        near *= (FIRST if rank == 0 else 1) if named else SECOND_NAME
        return near * (UNSEEN if net.distances(sense.name).keys() & {*THOUGHT} else 1)

    return net, senses[max(range(len(senses)), key=nearness)]


def _wanted(
    senses: Sequence[Sense], wanted: str, concept: str, part_of_speech: str, source: str
) -> Sense:
    """Find the sense that the user chose, by number or name.

    Raises:
        InputError: there is no sense of that number or name.
    """
    named = {sense.name: sense for sense in senses}
    numbered = {str(number): sense for number, sense in enumerate(senses, 1)}
    if match := named.get(wanted) or numbered.get(wanted):
        return match
    listed = "; ".join(
        f"{number} is {sense.name} ({textwrap.shorten(sense.definition, LETTERS)})"
        for number, sense in list(numbered.items())[:SHOWN]
    )
    senses_of = "sense of" if len(senses) == 1 else "senses of"
    raise InputError(
        f"sense = {wanted[:LETTERS]!r}: {source} has {len(senses)} {senses_of} "
        f"{concept[:LETTERS]!r} as {article(part_of_speech)}"
        + (f": {listed}; give a number or a name of these" if listed else "; give synonyms instead")
    )


def part(words: Iterable[str], part_of_speech: str) -> WordNet:
    """Extract the entries of some words from WordNet.

    Args:
        words: entries to look up, each of one or more words.
        part_of_speech: a key of `TAGS`.

    Raises:
        InputError: the database that NLTK found is damaged.
    """
    place = database()
    if place is None:
        return of_subset(SUBSET.read_text(), part_of_speech)
    from nltk.corpus.reader.wordnet import WordNetError

    try:
        with opened(place) as reader:
            return of_database(reader, words, part_of_speech)
    except (OSError, ValueError, AssertionError, LookupError, WordNetError) as error:
        raise InputError(
            f"NLTK_DATA: WordNet at {place} is damaged ({type(error).__name__}); install it again"
        ) from error


@functools.lru_cache(maxsize=4)
def of_subset(text: str, part_of_speech: str) -> WordNet:
    """Parse the subset from its file's text."""
    kept = json.loads(text)
    senses = {
        name: Sense(
            name, each.get("definition", ""), tuple(each.get("words", ())), tuple(each["above"])
        )
        for name, each in kept["senses"].items()
    }
    words = {word: tuple(names) for word, names in kept["words"][part_of_speech].items()}
    return WordNet("WordNet subset", words, senses)


def subset() -> dict[str, Any]:
    """Read the shipped subset: `licence`, `pictured` (common in pictures), `words`, `senses`."""
    return json.loads(SUBSET.read_text())


def database() -> Any | None:
    """NLTK's pointer to WordNet's folder or zip file; None if NLTK does not find it."""
    try:
        import nltk
    except ImportError:
        # Without NLTK the subset is used.
        return None
    for name in ("corpora/wordnet", "corpora/wordnet.zip/wordnet/"):
        try:
            return nltk.data.find(name)
        except LookupError:
            continue
    return None


@contextlib.contextmanager
def opened(place: Any) -> "Iterator[WordNetCorpusReader]":
    """Open the database at a location from `database`; reading its indices takes seconds."""
    from nltk.corpus.reader.wordnet import WordNetCorpusReader

    with warnings.catch_warnings():
        # Only English is used.
        warnings.filterwarnings("ignore", message="The multilingual functions")
        reader = WordNetCorpusReader(place, None)
    try:
        yield reader
    finally:
        # The reader has no method to close its files.
        for file in reader._data_file_map.values():
            file.close()


def of_database(
    reader: "WordNetCorpusReader", words: Iterable[str], part_of_speech: str
) -> WordNet:
    """Extract the senses of some words, and their hypernyms, from the whole database."""
    known_words, senses, noun = {}, {}, part_of_speech == "noun"
    for word in dict.fromkeys(map(lemma, words)):
        synsets: list[Any] = list(reader.synsets(word, TAGS[part_of_speech]))
        known_words[word] = tuple(synset.name() for synset in synsets)
        while synsets:
            synset = synsets.pop()
            if synset.name() not in senses:
                # Similarity is only computed between nouns.
                above = [*synset.hypernyms(), *synset.instance_hypernyms()] if noun else []
                names = tuple(each.name() for each in above)
                lemmas = tuple(synset.lemma_names())
                senses[synset.name()] = Sense(synset.name(), synset.definition(), lemmas, names)
                synsets += above
    return WordNet("WordNet", {word: n for word, n in known_words.items() if n}, senses)


def clean(names: Iterable[str], concept: str, others: Sequence[str] = ()) -> tuple[str, ...]:
    """Select words that can replace the concept in a sentence, without duplicates.

    Args:
        names: words in WordNet's spelling.
        concept: the concept; synonyms that contain it are excluded, such as "nude painting" for
            "nude".
        others: words for things to preserve, which are excluded too.
    """
    kept = {word.casefold() for word in others}
    words = (name.replace("_", " ") for name in names)
    own = re.compile(rf"\b{re.escape(' '.join(concept.split()))}\b", re.IGNORECASE)
    return tuple(dict.fromkeys(w for w in words if not own.search(w) and w.casefold() not in kept))


def lemma(words: str) -> str:
    """Words in the spelling of WordNet's index."""
    return "_".join(words.casefold().split())


def article(part_of_speech: str) -> str:
    """A part of speech with its indefinite article."""
    return f"{'an' if part_of_speech[0] in 'aeiou' else 'a'} {part_of_speech}"
