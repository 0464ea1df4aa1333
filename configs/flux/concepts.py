"""Erase one of the thirty concepts of the paper's Table 6 from FLUX.1 [dev].

    python -m erase.train --config configs/flux/concepts.py:cat --workdir runs/cat \
        --config.model.path=/path/to/FLUX.1-dev

After the colon is the concept (`pablo_picasso`, `shake_hand`), then, after a slash, a preset other
than `paper`: `cat/official`. Table 3's other method is `--config.method=concept_ablation`.
`python -m configs.flux.prompts` writes the prompts for `erase-anything benchmark`.

Needs: the weights, and one GPU with 80 GB.
Cost: 1,000 iterations at 512 x 512, 5.5 minutes on one H100 with random weights of full size.
Expected: a 3.6 MiB adapter. These were not run on the real weights.
"""

from collections.abc import Mapping

from ml_collections import ConfigDict

from configs.flux.abstractions import ABSTRACTIONS
from configs.flux.concept import Concept
from configs.flux.entities import ENTITIES
from configs.flux.relationships import RELATIONSHIPS
from configs.flux.settings import SETTINGS, split_name
from erase.runs import configure
from flux_jax.errors import InputError, nearest

# By category, as in Table 3.
CATEGORIES: Mapping[str, Mapping[str, Concept]] = {
    "entity": ENTITIES,
    "abstraction": ABSTRACTIONS,
    "relationship": RELATIONSHIPS,
}
KINDS = {"entity": "entity", "abstraction": "style", "relationship": "relation"}


def category_of(slug: str) -> str:
    """Return a concept's category.

    Raises:
        InputError: there is no such concept.
    """
    for category, concepts in CATEGORIES.items():
        if slug in concepts:
            return category
    known = [name for concepts in CATEGORIES.values() for name in concepts]
    raise InputError(
        f"concept = {slug!r:.60} is not one of the paper's thirty; {nearest(slug, known)}"
    )


def get_config(name: str = "cat") -> ConfigDict:
    """Return the run of a concept; after a slash, with another preset."""
    slug, preset = split_name(name)
    category = category_of(slug)
    concept = CATEGORIES[category][slug]
    others = [each.name for each in CATEGORIES[category].values() if each is not concept]
    return configure(
        preset or "paper",
        concept=concept.name,
        kind=KINDS[category],
        prompts=concept.prompts,
        synonyms=concept.synonyms,
        irrelevant=concept.irrelevant,
        part_of_speech=concept.part_of_speech,
        concept_ablation={"anchor": concept.anchor},
        evaluation={
            "pictures": 8,
            "templates": concept.templates,
            "others": tuple(others[:3]) if category != "relationship" else concept.irrelevant[:3],
            "batch": 2,
        },
        **SETTINGS,
    )
