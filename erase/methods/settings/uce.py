"""Settings of UCE; the method is in `erase.methods.uce`."""

from collections.abc import Iterator
from dataclasses import dataclass

from erase.config.fields import number
from erase.config.schema import Config
from erase.data.words.templates import SLOT, phrase
from erase.methods.settings.base import MethodFields


@dataclass(frozen=True)
class Settings:
    """Settings of UCE.

    Attributes:
        templates: prompts in which "{}" is replaced by the concept and its synonyms.
        synonyms: whether synonyms are erased with the concept.
        guide: words that replace the concept in its guides g; with an empty text, the guide is the
            empty prompt.
        keep: prompts to preserve; by default the templates with the irrelevant words.
        ridge: λ, weight of the ridge term.
        preserve: p, weight of the preserved prompts.
    """

    templates: tuple[str, ...] = ("{}",)
    synonyms: bool = True
    guide: str = ""
    keep: tuple[str, ...] = ()
    ridge: float = number(0.5, least=0)
    preserve: float = number(1.0, least=0)


def kept_prompts(config: Config) -> list[tuple[str, str]]:
    """Return the prompts to preserve, each with the words whose last token is used."""
    settings = config.method_settings(Settings)
    if settings.keep:
        return [(prompt, "") for prompt in settings.keep]
    return [(phrase(t, word), word) for t in settings.templates for word in config.irrelevant]


def problems(config: Config) -> Iterator[str]:
    """Return conflicts between the fields, one line each."""
    settings = config.method_settings(Settings)
    if not settings.templates:
        yield 'uce.templates = () is empty: give prompts such as "{}"'
    for template in settings.templates:
        if SLOT not in template:
            yield f'uce.templates: {template!r} needs "{SLOT}" where the concept goes'
    if settings.guide.casefold() in (w.casefold() for w in (config.concept, *config.synonyms)):
        yield f"uce.guide = {settings.guide!r} is the concept: name other words to replace it"
    if not settings.ridge and not kept_prompts(config):
        yield "uce.ridge = 0 with nothing to preserve is singular: raise it, or name other words"


FIELDS = MethodFields(
    Settings, per_run=("templates", "synonyms", "guide", "keep"), problems=problems
)
