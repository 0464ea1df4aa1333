"""Further sentences with the concept, written by a language model; see `language_model` beside."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import pydantic

from erase.config.schema import Config
from erase.data.words import language_model
from erase.data.words.language_model import Kept, kept_or_asked
from erase.data.words.templates import as_template
from erase.runtime.run_folder import SENTENCES
from flux_jax.errors import InputError


class Reply(pydantic.BaseModel):
    """What the language model has to answer."""

    model_config = pydantic.ConfigDict(extra="forbid", strict=True)

    # Braces would make a template of a sentence.
    sentences: list[
        Annotated[
            str,
            pydantic.Field(min_length=1, max_length=200, pattern=r"^[^{}\x00-\x1f\x7f-\x9f]*$"),
        ]
    ]


@dataclass(frozen=True)
class Sentences(Kept):
    """Sentences that hold a concept.

    Attributes:
        concept: which.
        sentences: beside the configuration's.
        source: where they come from, in words.
    """

    sentences: tuple[str, ...]
    source: str


def add_generated_prompts(config: Config, workdir: Path) -> tuple[Config, Sentences]:
    """A run's configuration with its further sentences among the prompts.

    Args:
        config: the run's.
        workdir: its folder, whose sentences serve if it keeps any; only read.

    Returns:
        The configuration; and the sentences: none where none are wanted, or where the language
        model gave none, which their source then says.

    Raises:
        InputError: the kept file is damaged.
    """
    generated, why = None, ""
    if config.more_prompts:
        about, path = (config.concept, config.more_prompts), workdir / SENTENCES
        generated, why = kept_or_asked(Sentences, path, config.concept, lambda: ask(*about))
    generated = generated or Sentences(config.concept, (), f"the configuration{why}")
    return replace(config, prompts=(*config.prompts, *generated.sentences)), generated


def ask(concept: str, count: int) -> Sentences:
    """Asks the language model of the environment for sentences.

    Args:
        concept: what they all hold.
        count: how many.

    Raises:
        InputError: there is no key, the endpoint cannot be used, or no reply was usable.
    """
    sentences, source = language_model.ask(
        question(concept, count), lambda text: check(text, concept, count)
    )
    return Sentences(concept, sentences, source)


def question(concept: str, count: int) -> str:
    """What the language model is asked."""
    return (
        f"Please write {count} short and different English captions of pictures. Each must hold "
        f"these words exactly as they are: {json.dumps(concept, ensure_ascii=False)}. Vary what "
        "else is seen, the place and the medium. Only reply the result with JSON format is as "
        'follows: {"sentences": ["caption1", "caption2", ...]}'
    )


def check(text: str, concept: str, count: int) -> tuple[str, ...]:
    """The sentences of a reply.

    Raises:
        InputError: it is not the JSON that was asked for, a sentence lacks the concept, or there
            are too few different ones.
    """
    sentences = tuple(dict.fromkeys(language_model.parse(Reply, text).sentences))
    for sentence in sentences:
        as_template(sentence, concept)
    if len(sentences) < count:
        raise InputError(f"sentences: {len(sentences)} different ones, {count} were asked for")
    return sentences[:count]
