"""Further sentences with the concept, from a language model (`erase.data.words.language_model`)."""

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
    """Schema of the language model's reply."""

    model_config = pydantic.ConfigDict(extra="forbid", strict=True)

    # No braces, which would turn a sentence into a template.
    sentences: list[
        Annotated[
            str,
            pydantic.Field(min_length=1, max_length=200, pattern=r"^[^{}\x00-\x1f\x7f-\x9f]*$"),
        ]
    ]


@dataclass(frozen=True)
class Sentences(Kept):
    """Sentences with a concept.

    Attributes:
        concept: the concept.
        sentences: sentences in addition to those of the configuration.
        source: source of the sentences, in words.
    """

    sentences: tuple[str, ...]
    source: str


def add_generated_prompts(config: Config, workdir: Path) -> tuple[Config, Sentences]:
    """Add sentences from a language model to the prompts of a run's configuration.

    Args:
        config: the run's configuration.
        workdir: the run's folder, whose saved sentences are used if there are any; only read.

    Returns:
        The configuration, and the added sentences. These are empty if none are requested, or if
        the language model gave none; their source then has the reason.

    Raises:
        InputError: the saved file is damaged.
    """
    generated, why = None, ""
    if config.more_prompts:
        about, path = (config.concept, config.more_prompts), workdir / SENTENCES
        generated, why = kept_or_asked(Sentences, path, config.concept, lambda: ask(*about))
    generated = generated or Sentences(config.concept, (), f"the configuration{why}")
    return replace(config, prompts=(*config.prompts, *generated.sentences)), generated


def ask(concept: str, count: int) -> Sentences:
    """Ask the language model of the environment for sentences.

    Args:
        concept: concept that all sentences must contain.
        count: number of sentences.

    Raises:
        InputError: there is no key, the endpoint cannot be used, or no reply was usable.
    """
    sentences, source = language_model.ask(
        question(concept, count), lambda text: check(text, concept, count)
    )
    return Sentences(concept, sentences, source)


def question(concept: str, count: int) -> str:
    """The question for the language model."""
    return (
        f"Please write {count} short and different English captions of pictures. Each must hold "
        f"these words exactly as they are: {json.dumps(concept, ensure_ascii=False)}. Vary what "
        "else is seen, the place and the medium. Only reply the result with JSON format is as "
        'follows: {"sentences": ["caption1", "caption2", ...]}'
    )


def check(text: str, concept: str, count: int) -> tuple[str, ...]:
    """Check a reply and return its sentences.

    Raises:
        InputError: it is not the requested JSON, a sentence lacks the concept, or there are too few
            different sentences.
    """
    sentences = tuple(dict.fromkeys(language_model.parse(Reply, text).sentences))
    for sentence in sentences:
        as_template(sentence, concept)
    if len(sentences) < count:
        raise InputError(f"sentences: {len(sentences)} different ones, {count} were requested")
    return sentences[:count]
