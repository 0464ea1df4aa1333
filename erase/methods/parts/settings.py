"""Settings of every method, and which of them contradict; needs no JAX, as usage errors do not.

What the settings do stands in the methods' own files (`erase.methods.esd`, for instance). A method
that is not in `FIELDS` brings its settings in its own file.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from erase.config.fields import choice, number
from erase.config.schema import AdamW, Config
from erase.data.words.templates import SLOT, as_template, phrase
from flux_jax.errors import InputError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance
else:
    # It exists for type checkers alone; those at run time look it up here.
    DataclassInstance = object


@dataclass(frozen=True)
class MethodFields:
    """What configurations know of a method.

    Attributes:
        settings: dataclass of its own settings, the configuration's part of the method's name
            (`esd.eta`); None where there are none.
        top_level: whether those settings are fields of the configuration itself instead
            (`lower.attn`).
        per_run: paths of settings that runs which train at once may differ in; what they say is
            not compiled.
        problems: what is wrong between a configuration's fields, a line each.
    """

    settings: type[DataclassInstance] | None
    top_level: bool = False
    per_run: tuple[str, ...] = ()
    problems: Callable[[Config], Iterable[str]] = lambda config: ()

    def in_configurations(self, name: str) -> Sequence[str]:
        """Fields of the configuration that hold its settings, if it has any.

        Args:
            name: the method's.
        """
        if self.settings and self.top_level:
            return [spec.name for spec in fields(self.settings)]
        return [name]


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
class EraseAnything:
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


@dataclass(frozen=True)
class ConceptAblation(AdamW):
    """Concept Ablation's; its optimiser's settings are `AdamW`'s.

    Attributes:
        anchor: what the concept becomes; by default the first of the irrelevant words.
        target: "model" or "noise", see the module.
        prior: weight of the prior.
    """

    learning_rate: float = number(1.6e-5, above=0)
    clip: float | None = number(1.0, above=0)
    anchor: str = ""
    target: str = choice("model", "model", "noise")
    prior: float = number(0.0, least=0)


@dataclass(frozen=True)
class Esd(AdamW):
    """ESD's; its optimiser's settings are `AdamW`'s.

    Attributes:
        eta: η, how far past the unconditional velocity the target lies.
        stand_in: words that take the concept's place in its sentence, whose velocity then is the
            unconditional one; an empty text leaves the place out; by default the empty prompt.
        erase_to: prompt g; by default what is unconditional.
        trajectories: whose way leads to x_t: the adapted model's ("student"), or the frozen one's.
        guidance: distilled guidance scale of all velocities in the loss; by default that of the
            trajectories.
    """

    learning_rate: float = number(1e-4, above=0)
    weight_decay: float = number(0.0, least=0)
    eta: float = number(1.0, least=0)
    stand_in: str | None = None
    erase_to: str = ""
    trajectories: str = choice("student", "student", "teacher")
    guidance: float | None = number(None, least=0)


@dataclass(frozen=True)
class Uce:
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


@dataclass(frozen=True)
class Mace(AdamW):
    """MACE's; its optimiser's settings are `AdamW`'s.

    Attributes:
        stand_in: word in the concept's place, for g; by default the first of the irrelevant words.
        edit_rank: of the closed form's change.
        ridge: λ, in means of the diagonal of Σ fᵀf.
        region: share of the picture that is taken for the concept's.
    """

    learning_rate: float = number(1e-5, above=0)
    weight_decay: float = number(0.0, least=0)
    stand_in: str = ""
    edit_rank: int = number(4, least=1)
    ridge: float = number(0.1, above=0)
    region: float = number(0.4, above=0, most=1)


@dataclass(frozen=True)
class Eap(AdamW):
    """EAP's; its optimiser's settings are `AdamW`'s.

    Attributes:
        logits_rate: Adam's, of the words' logits.
        temperature: of the Gumbel-softmax weights.
        preserve: λ.
        vocabulary: file with a word a line; by default the irrelevant words serve.
        most: words of it that are looked at: centres of that many clusters among the words nearest
            to the concept, where there are more.
        eta: η of L_esd.
        stand_in: see `erase.methods.esd`.
        trajectories: whose way leads to x_t: the adapted model's ("student"), or the frozen one's.
        guidance: distilled guidance scale of all velocities; by default that of the trajectories.
    """

    learning_rate: float = number(1e-5, above=0)
    weight_decay: float = number(0.0, least=0)
    logits_rate: float = number(1e-2, above=0)
    temperature: float = number(2.0, above=0)
    preserve: float = number(1.0, least=0)
    vocabulary: str | None = None
    most: int = number(100, least=1)
    eta: float = number(1.0, least=0)
    stand_in: str | None = None
    trajectories: str = choice("student", "student", "teacher")
    guidance: float | None = number(None, least=0)


@dataclass(frozen=True)
class MetaUnlearning(AdamW):
    """Meta-Unlearning's; its optimiser's settings are `AdamW`'s.

    Attributes:
        eta: η of L_esd.
        stand_in: see `erase.methods.esd`.
        trajectories: whose way leads to L_esd's x_t: the adapted model's ("student"), or the frozen
            one's.
        guidance: distilled guidance scale of all velocities; by default that of the trajectories.
        keep: γ1.
        meta: γ2.
        inner_steps: that teach the concept again.
        inner_rate: AdamW's, of these.
        pictures: of related concepts.
        related: prompts that they show, in turn; by default the first sentence with each irrelevant
            word in the concept's place.
    """

    learning_rate: float = number(1e-5, above=0)
    eta: float = number(1.0, least=0)
    stand_in: str | None = None
    trajectories: str = choice("student", "student", "teacher")
    guidance: float | None = number(None, least=0)
    keep: float = number(0.1, least=0)
    meta: float = number(0.1, least=0)
    inner_steps: int = number(3, least=1)
    inner_rate: float = number(1e-4, above=0)
    pictures: int = number(8, least=1)
    related: tuple[str, ...] = ()


def _erase_anything_problems(config: Config) -> Iterator[str]:
    own = config.method_settings(EraseAnything)
    lower, upper = own.lower, own.upper
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


def _concept_ablation_problems(config: Config) -> Iterator[str]:
    anchor = config.method_settings(ConceptAblation).anchor.casefold()
    if not (anchor or config.irrelevant):
        yield 'concept_ablation.anchor = "" and irrelevant = (): name what the concept becomes'
    if anchor in (word.casefold() for word in (config.concept, *config.synonyms)):
        yield f"concept_ablation.anchor = {anchor!r} is the concept: name what it is to become"


def uce_kept(config: Config) -> list[tuple[str, str]]:
    """Prompts to preserve, with the words there whose last token counts."""
    own = config.method_settings(Uce)
    if own.keep:
        return [(prompt, "") for prompt in own.keep]
    return [(phrase(t, word), word) for t in own.templates for word in config.irrelevant]


def _uce_problems(config: Config) -> Iterator[str]:
    own = config.method_settings(Uce)
    if not own.templates:
        yield 'uce.templates = () is empty: give prompts such as "{}"'
    for template in own.templates:
        if SLOT not in template:
            yield f'uce.templates: {template!r} needs "{SLOT}" where the concept goes'
    if own.guide.casefold() in (w.casefold() for w in (config.concept, *config.synonyms)):
        yield f"uce.guide = {own.guide!r} is the concept: name what comes in its place"
    if not own.ridge and not uce_kept(config):
        yield "uce.ridge = 0 with nothing to preserve is singular: raise it, or name other words"


def _mace_problems(config: Config) -> Iterator[str]:
    word = config.method_settings(Mace).stand_in
    if not (word or config.irrelevant):
        yield 'mace.stand_in = "" and irrelevant = (): name what comes in the concept\'s place'
    if word.casefold() in (each.casefold() for each in (config.concept, *config.synonyms)):
        yield f"mace.stand_in = {word!r} is the concept: name what comes in its place"


def _eap_problems(config: Config) -> Iterator[str]:
    named = config.method_settings(Eap).vocabulary
    if named is None and not config.irrelevant:
        yield "eap.vocabulary = None and irrelevant = (): EAP needs other words; name some"
    if named is not None and not Path(named).is_file():
        yield f"eap.vocabulary = {named!r} is not a file; name one with a word a line"


def _meta_unlearning_problems(config: Config) -> Iterator[str]:
    if not (config.method_settings(MetaUnlearning).related or config.irrelevant):
        yield (
            "meta_unlearning.related = () and irrelevant = (): Meta-Unlearning needs related "
            "concepts; name prompts or words"
        )


FIELDS: Mapping[str, MethodFields] = {
    "erase_anything": MethodFields(
        EraseAnything,
        top_level=True,
        per_run=("lower.eta", "lower.erase_to", "lower.stand_in", "upper.prompts", "upper.folder"),
        problems=_erase_anything_problems,
    ),
    "concept_ablation": MethodFields(
        ConceptAblation, per_run=("anchor",), problems=_concept_ablation_problems
    ),
    "esd": MethodFields(
        Esd,
        per_run=("eta", "stand_in", "erase_to"),
    ),
    "uce": MethodFields(
        Uce, per_run=("templates", "synonyms", "guide", "keep"), problems=_uce_problems
    ),
    "mace": MethodFields(Mace, per_run=("stand_in",), problems=_mace_problems),
    "eap": MethodFields(Eap, per_run=("vocabulary", "eta", "stand_in"), problems=_eap_problems),
    "meta_unlearning": MethodFields(
        MetaUnlearning, per_run=("eta", "stand_in", "related"), problems=_meta_unlearning_problems
    ),
    "attention_erasure": MethodFields(None),
}
