"""A run's configuration: fields with their defaults and ranges, and how it is read.

A configuration file is Python with a function

    def get_config():
        return configure(concept="soccer ball", lower={"attn": 5.0})

that names what differs from the defaults; `--config FILE --config.lower.attn=2` changes it from
the command line. Several runs that train at once share what is named so and differ in

    each={"ball": {"concept": "soccer ball"}, "cat": {"concept": "cat", "seed": 1}}

`load_runs` checks everything at once, then the rest of the program sees nothing but frozen
dataclasses.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from ml_collections import ConfigDict

from convert.errors import InputError
from erase.fields import built, choice, merged, number, paths
from erase.presets import PRESETS
from erase.prompts import SLOT, as_template
from flux_jax.lora import TEXT_QUERY_KEY

PARTS_OF_SPEECH = ("noun", "adjective", "verb")
# Holds what the runs that train at once differ in.
EACH = "each"
# What those may differ in; all else is compiled into one program.
OWN = (
    "concept",
    "prompts",
    "synonyms",
    "part_of_speech",
    "irrelevant",
    "language_model",
    "more_prompts",
    "seed",
    "bank.shuffled",
    "lower.eta",
    "lower.erase_to",
    "lower.stand_in",
    "upper.prompts",
    "upper.folder",
    "evaluation",
)


@dataclass(frozen=True)
class AdapterConfig:
    """The LoRA that is trained.

    Attributes:
        rank: R.
        alpha: the change is alpha / R * (x A) B; by default R.
        targets: stacked dense layers of the transformer that are adapted.
    """

    rank: int = number(8, least=1)
    alpha: float | None = number(None, above=0)
    targets: tuple[str, ...] = TEXT_QUERY_KEY


@dataclass(frozen=True)
class BankConfig:
    """What is prepared before training, and then drawn from.

    Attributes:
        sentences: prompts with the concept, each in several forms.
        shuffled: share of them whose words are put into a random order.
        trajectories: denoising runs of the frozen model, from noise to picture.
        batch: prompts encoded, and trajectories made, at once.
    """

    sentences: int = number(32, least=1)
    shuffled: float = number(1.0, least=0, most=1)
    trajectories: int = number(32, least=1)
    batch: int = number(8, least=1)


@dataclass(frozen=True)
class Lower:
    """The erasing level.

    Attributes:
        learning_rate: AdamW's.
        weight_decay: AdamW's.
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

    learning_rate: float = number(1e-3, above=0)
    weight_decay: float = number(0.01, least=0)
    esd: float = number(1.0, least=0)
    attn: float = number(1.0, least=0)
    eta: float = number(1.0, least=0)
    erase_to: str = ""
    stand_in: str | None = None
    trajectories: str = choice("teacher", "teacher", "student")
    attn_form: str = choice("normalised", "normalised", "released")


@dataclass(frozen=True)
class Upper:
    """The preserving level.

    Attributes:
        learning_rate: AdamW's.
        weight_decay: AdamW's.
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
    weight_decay: float = number(0.01, least=0)
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
class EarlyStop:
    """When a run has erased enough: a judge looks at pictures that evaluation does not draw.

    Attributes:
        every: iterations between two looks; 0 trains all iterations.
        pictures: drawn at a look, of `prompts` in turn.
        share: the run stops where the judge finds the concept in no larger a share of them.
        seed: of the first picture.
    """

    every: int = number(0, least=0)
    pictures: int = number(32, least=1)
    share: float = number(0.0, least=0, most=1)
    seed: int = number(3_000_000, least=0)


@dataclass(frozen=True)
class Evaluation:
    """What is drawn and counted after training.

    Attributes:
        pictures: pictures a cell; 0 leaves evaluation out.
        templates: prompts with "{}" where the word goes.
        others: concepts that should stay; by default all others that the judge knows.
        judge: folder of the judge; without one there are pictures, but no numbers.
        seed: of the first picture and of the choice of others.
        steps: denoising steps.
        guidance: distilled guidance scale.
        strength: of the adapter.
        batch: pictures drawn at once.
        examples: pictures a cell that the report shows.
        attention_examples: pictures whose attention maps it shows.
    """

    pictures: int = number(64, least=0)
    templates: tuple[str, ...] = ("a photo of a {}",)
    others: tuple[str, ...] = ()
    judge: str | None = None
    seed: int = number(1_000_000, least=0)
    steps: int = number(28, least=1)
    guidance: float = number(3.5, least=0)
    strength: float = 1.0
    batch: int = number(16, least=1)
    examples: int = number(8, least=1)
    attention_examples: int = number(4, least=0)


@dataclass(frozen=True)
class Config:
    """A run.

    Attributes:
        concept: what is erased.
        prompts: sentences with the concept, or templates with "{}" in its place.
        more_prompts: sentences with the concept that a language model adds; see `erase.sentences`.
        synonyms: other words for the concept; with none, WordNet's, see `erase.synonyms`.
        part_of_speech: of the concept, for WordNet.
        irrelevant: words for other things, whose attention the concept's is to resemble.
        language_model: whether a language model names those words instead; see `erase.irrelevant`.
        model: pipeline folder in diffusers' layout.
        dtype: of weights and products; by default float32 on CPU, else bfloat16.
        height: pixels.
        width: pixels.
        text_tokens: length of T5's input; by default the tokenizer's limit.
        steps: denoising steps of the trajectories.
        guidance: distilled guidance scale in training.
        alternation: "bilevel" makes one lower and one upper update an iteration; "joint" makes one
            of their sum; "adaptive" one of a sum whose weights follow what is being preserved.
        iterations: of these.
        batch_size: samples an update.
        seed: of everything random in training.
        checkpoint_every: iterations between checkpoints.
        adapter: the LoRA.
        bank: what is prepared.
        lower: the erasing level.
        upper: the preserving level.
        early_stop: when training ends before that.
        evaluation: what follows training.
    """

    concept: str
    prompts: tuple[str, ...] = ("a photo of a {}",)
    more_prompts: int = number(0, least=0)
    synonyms: tuple[str, ...] = ()
    part_of_speech: str = choice("noun", *PARTS_OF_SPEECH)
    irrelevant: tuple[str, ...] = ()
    language_model: bool = False
    model: str = "models/emoji-flux"
    dtype: str | None = choice(None, "float32", "bfloat16")
    height: int = number(512, least=1)
    width: int = number(512, least=1)
    text_tokens: int | None = number(None, least=2)
    steps: int = number(28, least=1)
    guidance: float = number(3.5, least=0)
    alternation: str = choice("bilevel", "bilevel", "joint", "adaptive")
    iterations: int = number(1000, least=1)
    batch_size: int = number(1, least=1)
    seed: int = number(0, least=0)
    checkpoint_every: int = number(100, least=1)
    adapter: AdapterConfig = AdapterConfig()
    bank: BankConfig = BankConfig()
    lower: Lower = Lower()
    upper: Upper = Upper()
    early_stop: EarlyStop = EarlyStop()
    evaluation: Evaluation = Evaluation()


def configure(preset: str = "", **changes: Any) -> ConfigDict:
    """The defaults with some changes, open to overrides; checked later, by `load_runs`.

    Args:
        preset: a name in `erase.presets`, whose values the changes go on top of.
        **changes: fields of `Config`; a dictionary for a part, for instance lower={"attn": 5.0}.

    Raises:
        InputError: there is no such preset.
    """
    if preset and preset not in PRESETS:
        raise InputError(f"preset = {preset!r} is unknown: choose from {', '.join(PRESETS)}")
    return ConfigDict(merged(Config, over(PRESETS.get(preset, {}), changes)))


def load_runs(given: ConfigDict | Mapping[str, Any] | None) -> dict[str, Config]:
    """Checks a configuration and freezes it.

    Args:
        given: what a configuration file returned, overrides included.

    Returns:
        A configuration for each run by its name, which is that of its folder; the name is empty
        where there is only the one run.

    Raises:
        InputError: with a line for every field that is unknown or cannot be used.
    """
    values = _plain(given)
    if EACH not in values:
        return {"": load_config(values)}
    each = values.pop(EACH)
    if not isinstance(each, Mapping) or not all(isinstance(e, Mapping) for e in each.values()):
        raise InputError(f"{EACH} must hold a dictionary of fields for each run, by its name")
    if not each:
        raise InputError(f"{EACH} = {{}} is empty: name a run, or leave it out")
    runs, problems = {}, []
    for name, changes in each.items():
        try:
            if not re.fullmatch(r"[\w-]+", name):
                raise InputError("a name becomes a folder's: use letters, digits, _ and -")
            runs[name] = load_config(over(values, changes))
        except InputError as error:
            problems.append(f"{EACH}.{name}: {error}")
    problems += [] if problems else _differences(runs)
    if problems:
        raise InputError("\n       ".join(problems))
    return runs


def load_config(given: ConfigDict | Mapping[str, Any] | None) -> Config:
    """`load_runs` for a configuration of one run.

    Raises:
        InputError: with a line for every field that is unknown or cannot be used.
    """
    values = _plain(given)
    problems: list[str] = []
    config = built(Config, values, problems)
    if not problems:
        problems.extend(_contradictions(config))
    if problems:
        raise InputError("\n       ".join(problems))
    return config


def _differences(runs: Mapping[str, Config]) -> Iterator[str]:
    """What keeps runs from training at once."""
    first, *others = runs
    for path in paths(Config):
        if path.startswith(OWN) or path in ("adapter", "bank", "lower", "upper"):
            continue
        value = attrgetter(path)
        for name in others:
            if value(runs[name]) != value(runs[first]):
                yield (
                    f"{EACH}.{name}.{path} = {value(runs[name])!r} and {EACH}.{first}.{path} = "
                    f"{value(runs[first])!r}: runs that train at once share it"
                )


def _plain(given: Any) -> dict[str, Any]:
    """What a configuration file returned, as dictionaries."""
    if given is None:
        raise InputError("config is missing: give --config configs/emoji_soccer_ball.py")
    if not isinstance(given, Mapping | ConfigDict):
        try:
            # What stands for a file that could not be read says why at any use.
            getattr(given, "concept", None)
        except OSError as error:
            raise InputError(f"config: {error}; check the path") from error
        kind = type(given).__name__
        raise InputError(f"config: get_config() gave a {kind}; return configure(...) from it")
    return given.to_dict() if isinstance(given, ConfigDict) else dict(given)


def over(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Changes on top of values, both nested dictionaries."""
    both = dict(values)
    for name, value in changes.items():
        nested = isinstance(value, Mapping) and isinstance(both.get(name), Mapping)
        both[name] = over(both[name], value) if nested else value
    return both


def _contradictions(config: Config) -> Iterator[str]:
    """What is wrong between fields that are right by themselves."""
    concept, upper = config.concept.casefold(), config.upper
    if not concept.strip():
        yield f"concept = {config.concept!r} is empty: name what is to be erased"
        return
    if not config.prompts:
        yield "prompts = () is empty: give sentences with the concept"
    for prompt in config.prompts:
        try:
            as_template(prompt, config.concept)
        except InputError as error:
            yield str(error)
    if not config.adapter.targets:
        yield "adapter.targets = () is empty: name layers of the transformer"
    if concept in (word.casefold() for word in config.synonyms):
        yield f"synonyms = {config.synonyms!r} holds the concept itself: leave it out"
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
    for word in config.irrelevant:
        if word.casefold() in (concept, *(s.casefold() for s in config.synonyms)):
            yield f"irrelevant: {word!r} is the concept or a synonym of it: leave it out"
    if upper.rsc:
        without = "or set upper.rsc to 0"
        if len(set(config.irrelevant)) < upper.negatives and not config.language_model:
            yield (
                f"irrelevant = {config.irrelevant!r} has fewer than upper.negatives = "
                f"{upper.negatives} different words: name more, {without}"
            )
    if not (config.lower.esd or config.lower.attn):
        yield "lower.esd = lower.attn = 0: nothing would be erased; make one of them positive"
    for template in config.evaluation.templates:
        if SLOT not in template:
            yield f'evaluation.templates: {template!r} needs "{SLOT}" where the word goes'
    if not config.evaluation.templates:
        yield f'evaluation.templates = () is empty: give prompts such as "a photo of a {SLOT}"'
