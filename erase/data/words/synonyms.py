"""Other words for the concept, c_syn: the configuration's, the model's, else WordNet's by NLTK.

A word has several senses in WordNet, of which the first need not be what pictures show: that of
"turtle" is a jumper. The sense is the user's (`Config.sense`), or the one nearest to things that
the model draws. The whole database is used where NLTK finds one (`NLTK_DATA`); else a subset that
ships with this package, `wordnet.json`, made from WordNet 3.1 by

    NLTK_DATA=~/nltk_data python -m erase wordnet tabby

which adds the words that it is given. WordNet's licence stands in it.
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


# How NLTK calls the parts of speech.
TAGS = {"noun": "n", "adjective": "a", "verb": "v"}


# A sense's nearness is the mean likeness to so many of the things that are most like it. It counts
# more for the word's most frequent sense and less for each rarer one, less where the word is not
# the sense's first name, and less for what is thought or felt and so in no picture. Chosen on 95
# nouns with the small model's things: 4 are wrong, where the first sense is wrong for 10.
NEAREST, FIRST, RARER, SECOND_NAME, UNSEEN = 5, 1.15, 0.96, 0.9, 0.8


THOUGHT = ("cognition.n.01", "feeling.n.01")


# Senses in a message, and letters of their definitions.
SHOWN, LETTERS = 3, 60


@dataclass(frozen=True)
class Sense:
    """One of a word's senses, a synset.

    Attributes:
        name: WordNet's for it, such as turtle.n.02.
        definition: in a few words.
        words: that have this sense, as WordNet writes them.
        above: names of the more general senses that are next to it.
    """

    name: str
    definition: str = ""
    words: tuple[str, ...] = ()
    above: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.name}: {self.definition}"


@dataclass(frozen=True)
class WordNet:
    """A part of WordNet, of one part of speech.

    Attributes:
        source: where it comes from.
        words: names of each word's senses, the most frequent first.
        senses: by name; all of those words, and all that are above these.
    """

    source: str
    words: Mapping[str, tuple[str, ...]]
    senses: Mapping[str, Sense]

    def of(self, word: str) -> list[Sense]:
        """A word's senses; none if it is unknown."""
        return [self.senses[name] for name in self.words.get(lemma(word), ())]

    def distances(self, sense: str) -> dict[str, int]:
        """Steps up to each more general sense, itself at 0."""
        distances, level, steps = {}, {sense}, 0
        while level:
            distances |= dict.fromkeys(level, steps)
            above = {name for each in level for name in self.senses[each].above}
            level, steps = above - distances.keys(), steps + 1
        return distances

    def likeness(self, one: str, other: str) -> float:
        """Wu and Palmer's: how deep what two senses share lies, against how deep they do; 0..1."""
        ups, others = self.distances(one), self.distances(other)
        best = 0.0
        for name in ups.keys() & others.keys():
            depth = 1 + max(self.distances(name).values())
            best = max(best, 2 * depth / (2 * depth + ups[name] + others[name]))
        return best


def resolve_synonyms(config: Config, wanted: bool) -> tuple[Config, str]:
    """The configuration with synonyms, and where they come from, or why there are none.

    Without any, L_rsc leads towards other things alone, and Acc_g is not counted.

    Args:
        config: the run's.
        wanted: whether synonyms are looked up where it names none; its method says that.

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
    """The sense of a word.

    Args:
        concept: one or more words.
        part_of_speech: a key of `TAGS`.
        wanted: which sense: a number from 1 on, or its name; None is the nearest to some things.
        things: these; with none, things that many pictures show.

    Returns:
        What was looked at, and the sense; None where the word is unknown.

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
    # Things by their most frequent sense; the concept says nothing about itself.
    apart = {lemma(concept)}
    beside = [net.of(each)[0].name for each in things if lemma(each) not in apart and net.of(each)]
    beside = [name for name in dict.fromkeys(beside) if name not in own]

    def nearness(rank: int) -> float:
        sense = senses[rank]
        likenesses = sorted(net.likeness(sense.name, other) for other in beside)[-NEAREST:]
        near = sum(likenesses) / max(1, len(likenesses)) * RARER**rank
        # Not in any case, since names of people are written large.
        named = sense.words[0] in ("_".join(concept.split()), lemma(concept))
        near *= (FIRST if rank == 0 else 1) if named else SECOND_NAME
        return near * (UNSEEN if net.distances(sense.name).keys() & {*THOUGHT} else 1)

    return net, senses[max(range(len(senses)), key=nearness)]


def _wanted(
    senses: Sequence[Sense], wanted: str, concept: str, part_of_speech: str, source: str
) -> Sense:
    """The sense that the user names.

    Raises:
        InputError: there is none of that number or name.
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
        + (f": {listed}; give a number or a name of these" if listed else "; name synonyms instead")
    )


def part(words: Iterable[str], part_of_speech: str) -> WordNet:
    """What WordNet knows of some words.

    Args:
        words: each one or more words.
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
    """The subset, from its file's text."""
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
    """The subset that ships: `licence`; `pictured`, what many pictures show; `words`, `senses`."""
    return json.loads(SUBSET.read_text())


def database() -> Any | None:
    """Where NLTK finds WordNet: a pointer to its folder or zip file, or None."""
    try:
        import nltk
    except ImportError:
        # Without its library there is no database either; the subset needs none.
        return None
    for name in ("corpora/wordnet", "corpora/wordnet.zip/wordnet/"):
        try:
            return nltk.data.find(name)
        except LookupError:
            continue
    return None


@contextlib.contextmanager
def opened(place: Any) -> "Iterator[WordNetCorpusReader]":
    """The database at a place that `database` gave; reading its indices takes seconds."""
    from nltk.corpus.reader.wordnet import WordNetCorpusReader

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


def of_database(
    reader: "WordNetCorpusReader", words: Iterable[str], part_of_speech: str
) -> WordNet:
    """Some words' senses, and those above them, from the whole database."""
    known_words, senses, noun = {}, {}, part_of_speech == "noun"
    for word in dict.fromkeys(map(lemma, words)):
        synsets: list[Any] = list(reader.synsets(word, TAGS[part_of_speech]))
        known_words[word] = tuple(synset.name() for synset in synsets)
        while synsets:
            synset = synsets.pop()
            if synset.name() not in senses:
                # Likeness is asked for among nouns alone.
                above = [*synset.hypernyms(), *synset.instance_hypernyms()] if noun else []
                names = tuple(each.name() for each in above)
                lemmas = tuple(synset.lemma_names())
                senses[synset.name()] = Sense(synset.name(), synset.definition(), lemmas, names)
                synsets += above
    return WordNet("WordNet", {word: n for word, n in known_words.items() if n}, senses)


def clean(names: Iterable[str], concept: str, others: Sequence[str] = ()) -> tuple[str, ...]:
    """Words that can stand in a sentence in the concept's place, once each.

    Args:
        names: as WordNet writes them.
        concept: no synonym may be or hold it, as "nude painting" holds "nude".
        others: words that mean what is to be kept.
    """
    kept = {word.casefold() for word in others}
    words = (name.replace("_", " ") for name in names)
    own = re.compile(rf"\b{re.escape(' '.join(concept.split()))}\b", re.IGNORECASE)
    return tuple(dict.fromkeys(w for w in words if not own.search(w) and w.casefold() not in kept))


def lemma(words: str) -> str:
    """Words as WordNet's index has them."""
    return "_".join(words.casefold().split())


def article(part_of_speech: str) -> str:
    """A part of speech with its article."""
    return f"{'an' if part_of_speech[0] in 'aeiou' else 'a'} {part_of_speech}"
