"""Words for other things, c_ir: from a language model (the paper's Table 5), or from lists.

`erase.data.words.language_model` sends the request.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pydantic

from erase.config.schema import Config
from erase.data.words import language_model
from erase.data.words.language_model import Kept, kept_or_asked
from erase.data.words.spelling import same
from erase.runtime.run_folder import IRRELEVANT
from flux_jax.errors import InputError

# Words requested per category; sentences then sample one from each.
WANTED = 8
# Used if neither a language model nor the configuration provides words.
COMMON = (
    "cloud",
    "tree",
    "carpet",
    "bridge",
    "bread",
    "river",
    "window",
    "bicycle",
    "mountain",
    "spoon",
    "clock",
    "garden",
)

Word = Annotated[str, pydantic.Field(pattern=r"^[A-Za-z][A-Za-z '-]{0,39}$")]
Score = Annotated[float, pydantic.Field(ge=0, le=1)]


class Reply(pydantic.BaseModel):
    """Schema of the language model's reply: words with their similarity to the concept."""

    model_config = pydantic.ConfigDict(extra="forbid", strict=True)

    no_relation: list[tuple[Word, Score]]
    far: list[tuple[Word, Score]]
    mid: list[tuple[Word, Score]]


@dataclass(frozen=True)
class Words(Kept):
    """Irrelevant words, in pools that sentences use in turn.

    Attributes:
        concept: concept that they are unrelated to.
        pools: the categories of a reply, or a single list.
        source: source of the words, in words.
    """

    pools: tuple[tuple[str, ...], ...]
    source: str

    @property
    def first(self) -> str:
        """The first word of all; there must be one."""
        return next(word for pool in self.pools for word in pool)


def gather_irrelevant(config: Config, workdir: Path, needed: int) -> Words:
    """Find the words of a run: saved in its folder, else from a language model, else from lists.

    Args:
        config: the run's configuration.
        workdir: the run's folder; only read.
        needed: number of different words that the run's method needs; 0 never asks a language
            model.

    Raises:
        InputError: the saved file is damaged, or the lists are too short.
    """
    why = ""
    if config.language_model and needed:
        about = (config.concept, config.synonyms, max(WANTED, needed))
        path = workdir / IRRELEVANT
        words, why = kept_or_asked(Words, path, config.concept, lambda: ask(*about))
        if words:
            return words
    names = config.irrelevant or _others(COMMON, config.concept, config.synonyms)
    whose = "the configuration's list" if config.irrelevant else "the list of common words"
    if len(set(names)) < needed:
        raise InputError(
            f"irrelevant: {whose} has {len(set(names))} different words, fewer than the {needed} "
            f"that method = {config.method!r} needs; add more{why}"
        )
    return Words(config.concept, (tuple(dict.fromkeys(names)),), whose + why)


def listed(config: Config) -> Words:
    """The words listed in the configuration, without asking a language model."""
    return Words(config.concept, (config.irrelevant,), "the configuration's list")


def ask(concept: str, synonyms: Sequence[str], count: int) -> Words:
    """Ask the language model of the environment for `count` words of each category.

    Args:
        concept: concept to erase.
        synonyms: other words for it, which are excluded too.
        count: words per category.

    Raises:
        InputError: there is no key, the endpoint cannot be used, or no reply was usable.
    """
    pools, source = language_model.ask(
        question(concept, count), lambda text: check(text, concept, synonyms, count)
    )
    return Words(concept, pools, source)


def question(concept: str, count: int) -> str:
    """The question of the paper's Table 5, with lists instead of tuples, which JSON lacks."""
    return (
        f"Hello, please return {count} English words that you think with Human intuition are "
        f"no_relation/far/mid in the semantic space from the English word: {json.dumps(concept)}, "
        "and only reply the result with JSON format is as follows: "
        '{"no_relation": [["word1", similarity_score1], ...], '
        '"far": [["word1", similarity_score1], ...], "mid": [["word1", similarity_score1], ...]}'
    )


def check(
    text: str, concept: str, synonyms: Sequence[str], count: int
) -> tuple[tuple[str, ...], ...]:
    """Check a reply and return its words, one pool per category.

    Raises:
        InputError: it is not the requested JSON, or has too few usable words.
    """
    reply = language_model.parse(Reply, text)
    pools, used = [], set()
    for name in Reply.model_fields:
        words = _others([word for word, _ in getattr(reply, name)], concept, synonyms)
        words = tuple(word for word in words if word.casefold() not in used)
        if len(words) < count:
            raise InputError(f"{name}: {len(words)} usable words, {count} were requested")
        used |= {word.casefold() for word in words}
        pools.append(words[:count])
    return tuple(pools)


def _others(words: Sequence[str], concept: str, synonyms: Sequence[str]) -> tuple[str, ...]:
    """Remove duplicates, the concept and its synonyms."""
    names = (concept, *synonyms)
    return tuple(dict.fromkeys(w for w in words if not any(same(w, each) for each in names)))
