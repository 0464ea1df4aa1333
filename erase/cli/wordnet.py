"""Add words to the shipped subset of WordNet, and write it again.

    NLTK_DATA=~/nltk_data erase-anything wordnet tabby

NLTK_DATA is the folder that contains corpora/wordnet.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from absl import app

from erase.cli.flags import parse_flags, quiet
from flux_jax.errors import InputError, exits_cleanly


@exits_cleanly
def main(words: Sequence[str]) -> None:
    """Write the subset again, with its present words and the additional ones."""
    from erase.data.words.synonyms import SUBSET, database, lemma, of_database, opened, subset
    from erase.runtime.files import write

    quiet()
    place = database()
    if place is None:
        raise InputError("NLTK_DATA: NLTK finds no WordNet; give the folder that has corpora/")
    kept = subset()
    senses: dict[str, Any] = {}
    with opened(place) as reader:
        for speech, present in kept["words"].items():
            # A plural is looked up as written, as the database would.
            net = of_database(reader, sorted({*present, *map(lemma, words[1:])}), speech)
            kept["words"][speech] = net.words
            named = {name for names in net.words.values() for name in names}
            for name, sense in net.senses.items():
                # Senses that are only hypernyms need no definition or words.
                text = {"definition": sense.definition, "words": sense.words}
                senses[name] = (text if name in named else senses.get(name, {})) | {
                    "above": sense.above
                }
    kept["senses"] = dict(sorted(senses.items()))
    write(SUBSET, as_lines(kept) + "\n")


def as_lines(values: Any, depth: int = 2) -> str:
    """Format JSON with one line per entry, down to the given depth."""
    if not depth or not isinstance(values, Mapping):
        return json.dumps(values, ensure_ascii=False)
    entries = (f"{json.dumps(name)}: {as_lines(each, depth - 1)}" for name, each in values.items())
    return "{\n" + ",\n".join(entries) + "\n}"


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
