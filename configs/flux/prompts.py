"""Write prompts and CLIP's classes for Tables 3 and 4, as `erase-anything benchmark` reads them.

    python -m configs.flux.prompts --out prompts

    prompts/entity.txt, abstraction.txt, relationship.txt    CLIP's classes, with their synonyms
    prompts/cat.csv, ...                                     a file for each of the 30 concepts
    prompts/celebrity/adele.csv, ...                         a file for each of the 50 persons

Columns are those of MACE's file of celebrities: type, prompt, evaluation_seed. The types of a
concept's rows are erased (Acc_e), synonyms (Acc_g) and others (Acc_ir: the nine other concepts of
its category in turn), of a person's erased and others (all fifty who are kept). All templates have
the same seeds, so that types and adapters differ only in words.
"""

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

from configs.flux import celebrity
from configs.flux.concept import Concept, slug_of
from configs.flux.concepts import CATEGORIES
from convert.arguments import Parser
from erase.data.words.templates import phrase
from erase.runtime.files import write
from flux_jax.errors import InputError, exits_cleanly, say
from flux_jax.system.files import check_folder

COLUMNS = ("type", "prompt", "evaluation_seed")
ERASED, SYNONYMS, OTHERS = "erased", "synonyms", "others"
# Pictures of a type for each concept. The paper gives no number.
PICTURES = 50
MOST_PICTURES = 10_000
# Seeds of a person's prompts: MACE has five for each of its five templates.
SEEDS, OTHER_SEEDS = 5, 1
Row = tuple[str, str, int]


def of_concept(concept: Concept, category: str, pictures: int = PICTURES) -> Iterator[Row]:
    """Yield the rows of a concept's file.

    Args:
        concept: the concept that is erased.
        category: its category.
        pictures: rows of each type.
    """
    others = [each for each in CATEGORIES[category].values() if each is not concept]
    for number in range(pictures):
        yield ERASED, concept.prompt(number), number
    for number in range(pictures):
        at, turn = number % len(concept.synonyms), number // len(concept.synonyms)
        yield SYNONYMS, concept.prompt(turn, concept.synonyms[at]), number
    for number in range(pictures):
        other, turn = others[number % len(others)], number // len(others)
        yield OTHERS, other.prompt(turn), number


def of_person(name: str, kept: Sequence[str]) -> Iterator[Row]:
    """Yield the rows of a person's file.

    Args:
        name: the person who is erased.
        kept: all who are kept.
    """
    for group, names, seeds in ((ERASED, [name], SEEDS), (OTHERS, kept, OTHER_SEEDS)):
        for each in names:
            for template in celebrity.TEMPLATES:
                for seed in range(seeds):
                    yield group, phrase(template, each), seed


def classes(category: str) -> str:
    """CLIP's classes of a category, a line each, with their synonyms."""
    concepts = CATEGORIES[category].values()
    return "".join(f"{each.name}: {', '.join(each.synonyms)}\n" for each in concepts)


def as_csv(rows: Iterator[Row]) -> str:
    """Format rows as a table with its header."""
    file = io.StringIO(newline="")
    csv.writer(file, lineterminator="\n").writerows([COLUMNS, *rows])
    return file.getvalue()


def files(pictures: int = PICTURES) -> Iterator[tuple[str, str]]:
    """Yield all files: the path and the content of each.

    Args:
        pictures: rows of each type for a concept.
    """
    for category, concepts in CATEGORIES.items():
        yield f"{category}.txt", classes(category)
        for slug, concept in concepts.items():
            yield f"{slug}.csv", as_csv(of_concept(concept, category, pictures))
    known = celebrity.celebrities()
    for name in known["erased"]:
        yield f"celebrity/{slug_of(name)}.csv", as_csv(of_person(name, known["kept"]))


@exits_cleanly
def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; see the module's docstring."""
    parser = Parser("configs.flux.prompts", __doc__)
    parser.add_argument("--out", required=True, help="folder for the files")
    parser.add_argument(
        "--pictures", type=int, default=PICTURES, help="pictures of each type for a concept"
    )
    options = parser.parse_args(arguments)
    if options.pictures < 1:
        raise InputError(f"pictures = {options.pictures} must be at least 1")
    if options.pictures > MOST_PICTURES:
        raise InputError(f"pictures = {options.pictures} must be at most {MOST_PICTURES:,}")
    check_folder(options.out, "out")
    written = list(files(options.pictures))
    for path, content in written:
        write(Path(options.out, path), content)
    say(f"{len(written)} files in {options.out}")


if __name__ == "__main__":
    main()
