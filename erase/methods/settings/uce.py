"""Settings of UCE; `erase.methods.uce` is the method."""

from collections.abc import Iterator
from dataclasses import dataclass

from erase.config.fields import number
from erase.config.schema import Config
from erase.data.words.templates import SLOT, phrase
from erase.methods.settings.base import MethodFields


@dataclass(frozen=True)
class Settings:
    """UCE's.

    Attributes:
        templates: prompts with "{}" in whose place the concept and its synonyms come.
        synonyms: whether synonyms are erased with the concept.
        guide: what comes in the concept's place; an empty text is the empty prompt.
        keep: prompts to preserve; by default irrelevant words in the concept's place.
        ridge: λ.
        preserve: p.
    """

    templates: tuple[str, ...] = ("{}",)
    synonyms: bool = True
    guide: str = ""
    keep: tuple[str, ...] = ()
    ridge: float = number(0.5, least=0)
    preserve: float = number(1.0, least=0)


def kept_prompts(config: Config) -> list[tuple[str, str]]:
    """Prompts to preserve, with the words there whose last token counts."""
    settings = config.method_settings(Settings)
    if settings.keep:
        return [(prompt, "") for prompt in settings.keep]
    return [(phrase(t, word), word) for t in settings.templates for word in config.irrelevant]


def problems(config: Config) -> Iterator[str]:
    """What is wrong between the fields, a line each."""
    settings = config.method_settings(Settings)
    if not settings.templates:
        yield 'uce.templates = () is empty: give prompts such as "{}"'
    for template in settings.templates:
        if SLOT not in template:
            yield f'uce.templates: {template!r} needs "{SLOT}" where the concept goes'
    if settings.guide.casefold() in (w.casefold() for w in (config.concept, *config.synonyms)):
        yield f"uce.guide = {settings.guide!r} is the concept: name what comes in its place"
    if not settings.ridge and not kept_prompts(config):
        yield "uce.ridge = 0 with nothing to preserve is singular: raise it, or name other words"


FIELDS = MethodFields(
    Settings, per_run=("templates", "synonyms", "guide", "keep"), problems=problems
)
