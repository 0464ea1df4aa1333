"""Write the two prompt files of the small Table 2, with the sentences of the model's recipe.

    python -m benchmarks.table2.prompts

writes `concept.csv`, in I2P's form, whose prompts all name the erased concept; `captions.csv`, in
MACE's form of COCO's captions, whose captions name other things; and `study.csv`, in the same form,
with prompts of both kinds and several seeds of each, for the user study's five axes. The first rows
are a fair sample of all: kinds of prompts take turns. All prompts are invented; no published set is
copied.
"""

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from configs.emoji_table2 import CONCEPT
from convert.arguments import Parser
from erase.runtime.files import write
from flux_jax.errors import exits_cleanly, say
from recipes.emoji_flux.captions import (
    BACKGROUND_ADDED,
    COLOURS,
    OPENINGS,
    PAIR,
    RELATED,
    SINGLE,
    STYLE_ADDED,
    misspell,
    one_of,
    with_article,
)
from recipes.emoji_flux.world import ENTITIES, NO_ARTICLE, STYLES

FOLDER = Path(__file__).parent
CONCEPT_FILE, CAPTION_FILE = FOLDER / "concept.csv", FOLDER / "captions.csv"
STUDY_FILE = FOLDER / "study.csv"
# As many as a GPU draws in minutes.
PROMPTS, CAPTIONS = 600, 1000
# Prompts of the study, and seeds of each.
STUDIED, STUDY_SEEDS = 60, 4
# The word for the concept in each kind of prompt; kinds take turns.
KINDS = ("name", "synonym", "misspelt")
# I2P's columns that can be filled without its pictures, and MACE's groups.
I2P_HEADER = (
    *("", "prompt", "categories", "hard", "evaluation_seed", "evaluation_guidance"),
    *("sd_image_width", "sd_image_height", "sd_model", "case_number", "type"),
)
COCO_HEADER = ("case_number", "source", "prompt", "evaluation_seed", "coco_id")
MODEL, SIDE, GUIDANCE = "emoji-flux", 64, 3.5
# Of the files' own: no seed of training or of `evaluation.seed` is below 1,000 and above these.
SEEDS = {CONCEPT_FILE: 5_000_000, CAPTION_FILE: 6_000_000, STUDY_FILE: 9_000_000}
# The object is in the plural there, which the judge does not read in every prompt.
SINGULAR = tuple(relation for relation in RELATED if relation != "amidst")

_CONCEPT = next(entity for entity in ENTITIES if entity.name == CONCEPT)
# Names of one form: the judge reads a caption's things by their names.
OTHERS = tuple(entity.name for entity in ENTITIES if entity.name != CONCEPT)


def word_for(rng: np.random.Generator, kind: str) -> str:
    """Return a word for the concept: its name, a synonym, or either with a typing error."""
    if kind == "misspelt":
        return misspell(rng, one_of(rng, _CONCEPT.words))
    return _CONCEPT.name if kind == "name" else one_of(rng, _CONCEPT.synonyms)


def sentence(rng: np.random.Generator, words: Sequence[str]) -> tuple[str, list[str]]:
    """Write a sentence about one or two things, and say which parts it has.

    Args:
        rng: source of randomness.
        words: one or two things, without articles.

    Returns:
        The sentence, and its categories: "single", "pair" or a relation; "style"; "background".
    """
    said = [word if word in NO_ARTICLE else with_article(word) for word in words]
    fields = {"x": said[0], "X": words[0], "y": said[-1], "Y": words[-1]}
    if len(words) == 1:
        parts, text = ["single"], one_of(rng, SINGLE).format(**fields)
    elif rng.random() < 0.5:
        parts, text = ["pair"], (one_of(rng, OPENINGS) + one_of(rng, PAIR)).format(**fields)
    else:
        relation = one_of(rng, SINGULAR)
        template = one_of(rng, RELATED[relation])
        parts, text = [relation], (one_of(rng, OPENINGS) + template).format(**fields)
    if rng.random() < 0.4:
        parts.append("style")
        text = one_of(rng, STYLE_ADDED).format(text=text, s=one_of(rng, STYLES))
    if rng.random() < 0.3:
        parts.append("background")
        template, colour = one_of(rng, BACKGROUND_ADDED), with_article(one_of(rng, COLOURS))
        text = template.format(text=text, a_b=colour)
    return text, parts


def concept_rows(count: int) -> Iterator[tuple[object, ...]]:
    """The rows of `concept.csv`: the concept alone, or with another thing before or after it."""
    rng = np.random.default_rng(0)
    for number in range(count):
        kind = KINDS[number % len(KINDS)]
        words = [word_for(rng, kind)]
        if rng.random() < 0.5:
            words.insert(int(rng.integers(2)), one_of(rng, OTHERS))
        text, parts = sentence(rng, words)
        seed = SEEDS[CONCEPT_FILE] + number
        hard = int(kind == "misspelt")
        head = (number, text, ", ".join(parts), hard, seed, GUIDANCE, SIDE, SIDE)
        yield (*head, MODEL, number, kind)


def caption_rows(count: int) -> Iterator[tuple[object, ...]]:
    """The rows of `captions.csv`: one or two things, none of them the concept."""
    rng = np.random.default_rng(1)
    for number in range(count):
        chosen = rng.choice(len(OTHERS), size=1 + int(rng.integers(2)), replace=False)
        text, _ = sentence(rng, [OTHERS[i] for i in chosen])
        yield number, "invented", text, SEEDS[CAPTION_FILE] + number, number


def study_rows(prompts: int) -> Iterator[tuple[object, ...]]:
    """The rows of `study.csv`: one prompt that names the concept, two of others, and so on."""
    rng = np.random.default_rng(2)
    for number in range(prompts):
        if number % 3 == 0:
            words = [CONCEPT]
        else:
            chosen = rng.choice(len(OTHERS), size=1 + int(rng.integers(2)), replace=False)
            words = [OTHERS[i] for i in chosen]
        text, _ = sentence(rng, words)
        for row in range(STUDY_SEEDS * number, STUDY_SEEDS * (number + 1)):
            yield row, "invented", text, SEEDS[STUDY_FILE] + row, row


def as_csv(header: Sequence[str], rows: Iterator[tuple[object, ...]]) -> str:
    """Format rows as CSV."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()


def files() -> dict[Path, str]:
    """The text of each file."""
    return {
        CONCEPT_FILE: as_csv(I2P_HEADER, concept_rows(PROMPTS)),
        CAPTION_FILE: as_csv(COCO_HEADER, caption_rows(CAPTIONS)),
        STUDY_FILE: as_csv(COCO_HEADER, study_rows(STUDIED)),
    }


def other_seeds(more: int) -> str:
    """The text of `captions.csv` with other seeds, for pictures to compare with."""
    rows = ((*row[:3], int(str(row[3])) + more, row[4]) for row in caption_rows(CAPTIONS))
    return as_csv(COCO_HEADER, rows)


@exits_cleanly
def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; see the module's docstring."""
    Parser("benchmarks.table2.prompts", __doc__).parse_args(arguments)
    for path, text in files().items():
        write(path, text)
        say(f"{path}: {len(text):,} bytes")


if __name__ == "__main__":
    main()
