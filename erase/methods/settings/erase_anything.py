"""Settings of EraseAnything: of its two levels, and how they alternate."""

from collections.abc import Iterator
from dataclasses import dataclass

from erase.config.fields import choice, number
from erase.config.schema import AdamW, Config
from erase.data.words.templates import as_template
from erase.methods.settings.base import MethodFields
from flux_jax.errors import InputError


@dataclass(frozen=True)
class Lower(AdamW):
    """The erasing level; its optimiser's settings are `AdamW`'s.

    Attributes:
        esd: weight of L_esd.
        attn: weight of L_attn.
        eta: how far past the unconditional velocity L_esd's target lies.
        erase_to: prompt whose velocity that target starts from, instead of the unconditional one.
        stand_in: words that take the concept's place in its sentence, whose velocity then is the
            unconditional one in that target, so that the rest of the sentence stays; an empty
            text leaves the place out.
        trajectories: whose denoising leads to x_t: "teacher" is the frozen model's, made once,
            "student" the adapted model's own, made anew in each update.
        attn_form: "normalised" is the mean share of attention, "released" the authors' code.
    """

    esd: float = number(1.0, least=0)
    attn: float = number(1.0, least=0)
    eta: float = number(1.0, least=0)
    erase_to: str = ""
    stand_in: str | None = None
    trajectories: str = choice("teacher", "teacher", "student")
    attn_form: str = choice("normalised", "normalised", "released")


@dataclass(frozen=True)
class Upper(AdamW):
    """The preserving level; its optimiser's settings are `AdamW`'s.

    Attributes:
        lora: weight of L_lora.
        rsc: weight of L_rsc.
        lora_target: what L_lora holds the velocity to: "noise" is the paper's, from picture to
            noise; "base" is the frozen model's own velocity there.
        pictures: pictures of the frozen model that L_lora holds on to.
        prompts: what they show, in turn; by default the first sentence, with the concept.
        without_concept: whether the concept's words are left out of those prompts.
        folder: pictures with captions (`cat.png`, `cat.txt`) to hold on to instead.
        rsc_form: "infonce" has the roles of the paper's text, "literal" is its equation with the
            sign mended, "released" the authors' code: bare words, first head of the last block.
        blocks: dual-stream blocks whose attention L_rsc compares.
        temperature: of L_rsc.
        negatives: irrelevant words a sentence, K in L_rsc.
        early: share of the denoising steps, counted from the noise, that L_rsc looks at.
    """

    learning_rate: float = number(5e-4, above=0)
    lora: float = number(0.1, least=0)
    rsc: float = number(0.1, least=0)
    lora_target: str = choice("noise", "noise", "base")
    pictures: int = number(8, least=1)
    prompts: tuple[str, ...] = ()
    without_concept: bool = False
    folder: str | None = None
    rsc_form: str = choice("infonce", "infonce", "literal", "released")
    blocks: str = choice("all", "all", "last")
    temperature: float = number(0.07, above=0)
    negatives: int = number(3, least=1)
    early: float = number(0.25, above=0, most=1)


@dataclass(frozen=True)
class Settings:
    """EraseAnything's, which are fields of the configuration itself: `lower.attn`, `alternation`.

    Attributes:
        lower: the erasing level.
        upper: the preserving level.
        alternation: "bilevel" makes one lower and one upper update an iteration; "joint" makes one
            of their sum; "adaptive" one of a sum whose weights follow what is being preserved.
    """

    lower: Lower = Lower()
    upper: Upper = Upper()
    alternation: str = choice("bilevel", "bilevel", "joint", "adaptive")


def problems(config: Config) -> Iterator[str]:
    """What is wrong between the fields, a line each."""
    settings = config.method_settings(Settings)
    lower, upper = settings.lower, settings.upper
    if upper.folder and (upper.prompts or upper.without_concept):
        yield (
            f"upper.folder = {upper.folder!r} brings captions of its own: leave upper.prompts and "
            "upper.without_concept out"
        )
    for prompt in upper.prompts if upper.without_concept else ():
        try:
            as_template(prompt, config.concept)
        except InputError as error:
            yield f"upper.{error}, or leave upper.without_concept out"
    if upper.rsc and len(set(config.irrelevant)) < upper.negatives and not config.language_model:
        yield (
            f"irrelevant = {config.irrelevant!r} has fewer than upper.negatives = "
            f"{upper.negatives} different words: name more, or set upper.rsc to 0"
        )
    if not (lower.esd or lower.attn):
        yield "lower.esd = lower.attn = 0: nothing would be erased; make one of them positive"


FIELDS = MethodFields(
    Settings,
    top_level=True,
    per_run=("lower.eta", "lower.erase_to", "lower.stand_in", "upper.prompts", "upper.folder"),
    problems=problems,
)
