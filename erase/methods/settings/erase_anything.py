"""Settings of EraseAnything: its two levels and how they alternate."""

from collections.abc import Iterator
from dataclasses import dataclass

from erase.config.fields import choice, number
from erase.config.schema import AdamW, Config
from erase.data.words.templates import as_template
from erase.methods.settings.base import MethodFields
from flux_jax.errors import InputError


@dataclass(frozen=True)
class Lower(AdamW):
    """The erasing level; the optimiser's settings are inherited from `AdamW`.

    Attributes:
        esd: weight of L_esd.
        attn: weight of L_attn.
        eta: η, how far L_esd's target is moved past the unconditional velocity, away from the
            concept.
        erase_to: prompt whose velocity the target starts from, instead of the unconditional one.
        stand_in: words that replace the concept in its sentence. The velocity for that sentence is
            then the unconditional one in the target, so that the rest of the sentence is
            preserved. An empty text removes the concept from the sentence.
        trajectories: model that denoises to x_t: "teacher" is the frozen model, whose trajectories
            are computed once; "student" is the adapted model, which denoises again in each update.
        attn_form: "normalised" is the mean share of attention, "released" is the form in the
            authors' code.
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
    """The preserving level; the optimiser's settings are inherited from `AdamW`.

    Attributes:
        lora: weight of L_lora.
        rsc: weight of L_rsc.
        lora_target: target velocity of L_lora: "noise" is the paper's, from picture to noise;
            "base" is the frozen model's velocity at the same point.
        pictures: number of the frozen model's pictures that L_lora preserves.
        prompts: prompts of these pictures, used in turn; by default the first sentence, with the
            concept.
        without_concept: whether the concept's words are removed from these prompts.
        folder: folder of pictures with captions (`cat.png`, `cat.txt`) to preserve instead.
        rsc_form: form of L_rsc: "infonce" follows the paper's text; "literal" is the paper's
            equation with its sign corrected; "released" is the authors' code, which uses bare
            words and the first head of the last block.
        blocks: dual-stream blocks whose attention L_rsc compares.
        temperature: temperature of L_rsc.
        negatives: irrelevant words per sentence, K in L_rsc.
        early: share of the denoising steps, counted from the noise, that L_rsc uses.
        noises: number of noises of each picture that L_lora uses, each at one denoising step, with
            the frozen model's velocities computed once; 0 samples noise and step in each update.
            Only with lora_target "base".
        rsc_features: model of the features of the synonym and of the irrelevant words in L_rsc:
            "adapted" is the model in training, evaluated in each update; "frozen" is the frozen
            model, whose features of all words are computed once.
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
    noises: int = number(0, least=0, most=100_000)
    rsc_features: str = choice("adapted", "adapted", "frozen")


@dataclass(frozen=True)
class Settings:
    """Settings of EraseAnything, top-level fields of the configuration (`lower.attn`).

    Attributes:
        lower: the erasing level.
        upper: the preserving level.
        alternation: updates of an iteration: "bilevel" is one lower and one upper update; "joint"
            is one update on the sum of their losses; "adaptive" is one update on a sum whose
            weights follow the preserving loss.
    """

    lower: Lower = Lower()
    upper: Upper = Upper()
    alternation: str = choice("bilevel", "bilevel", "joint", "adaptive")


def problems(config: Config) -> Iterator[str]:
    """Return conflicts between the fields, one line each."""
    settings = config.method_settings(Settings)
    lower, upper = settings.lower, settings.upper
    if upper.folder and (upper.prompts or upper.without_concept):
        yield (
            f"upper.folder = {upper.folder!r} has its own captions: remove upper.prompts and "
            "upper.without_concept"
        )
    for prompt in upper.prompts if upper.without_concept else ():
        try:
            as_template(prompt, config.concept)
        except InputError as error:
            yield f"upper.{error}, or set upper.without_concept to False"
    if upper.rsc and len(set(config.irrelevant)) < upper.negatives and not config.language_model:
        yield (
            f"irrelevant = {config.irrelevant!r} has fewer than upper.negatives = "
            f"{upper.negatives} different words: name more, or set upper.rsc to 0"
        )
    if upper.noises and upper.lora_target != "base":
        yield (
            f"upper.noises = {upper.noises} with upper.lora_target = {upper.lora_target!r} saves "
            'nothing: set upper.lora_target to "base", or upper.noises to 0'
        )
    if not (lower.esd or lower.attn):
        yield "lower.esd = lower.attn = 0: nothing would be erased; set one of them above 0"


FIELDS = MethodFields(
    Settings,
    top_level=True,
    per_run=("lower.eta", "lower.erase_to", "lower.stand_in", "upper.prompts", "upper.folder"),
    problems=problems,
)
