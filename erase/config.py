"""A run's configuration: fields with their defaults and ranges, and how it is read.

A configuration file is Python with a function

    def get_config():
        return configure(concept="soccer ball", lower={"attn": 5.0})

that names what differs from the defaults; `--config FILE --config.lower.attn=2` changes it from
the command line. `load_config` checks everything at once, then the rest of the program sees
nothing but frozen dataclasses.
"""

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from convert.errors import InputError
from erase.prompts import SLOT, as_template
from flux_jax.lora import TEXT_QUERY_KEY

PARTS_OF_SPEECH = ("noun", "adjective", "verb")


def _number(
    default: Any,
    *,
    least: float | None = None,
    most: float | None = None,
    above: float | None = None,
) -> Any:
    """A number that lies in a range."""
    return field(default=default, metadata={"least": least, "most": most, "above": above})


def _choice(default: str | None, *choices: str) -> Any:
    """One of several words."""
    return field(default=default, metadata={"choices": choices})


@dataclass(frozen=True)
class AdapterConfig:
    """The LoRA that is trained.

    Attributes:
        rank: R.
        alpha: the change is alpha / R * (x A) B; by default R.
        targets: stacked dense layers of the transformer that are adapted.
    """

    rank: int = _number(8, least=1)
    alpha: float | None = _number(None, above=0)
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

    sentences: int = _number(32, least=1)
    shuffled: float = _number(1.0, least=0, most=1)
    trajectories: int = _number(32, least=1)
    batch: int = _number(8, least=1)


@dataclass(frozen=True)
class Lower:
    """The erasing level.

    Attributes:
        learning_rate: AdamW's.
        weight_decay: AdamW's.
        esd: weight of L_esd.
        attn: weight of L_attn.
        eta: how far past the unconditional velocity L_esd's target lies.
        erase_to: prompt whose velocity takes the unconditional one's place in that target.
    """

    learning_rate: float = _number(1e-3, above=0)
    weight_decay: float = _number(0.01, least=0)
    esd: float = _number(1.0, least=0)
    attn: float = _number(1.0, least=0)
    eta: float = _number(1.0, least=0)
    erase_to: str = ""


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
        temperature: of L_rsc.
        negatives: irrelevant words a sentence, K in L_rsc.
        early: share of the denoising steps, counted from the noise, that L_rsc looks at.
    """

    learning_rate: float = _number(5e-4, above=0)
    weight_decay: float = _number(0.01, least=0)
    lora: float = _number(0.1, least=0)
    rsc: float = _number(0.1, least=0)
    lora_target: str = _choice("noise", "noise", "base")
    pictures: int = _number(8, least=1)
    prompts: tuple[str, ...] = ()
    temperature: float = _number(0.07, above=0)
    negatives: int = _number(3, least=1)
    early: float = _number(0.25, above=0, most=1)


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

    pictures: int = _number(64, least=0)
    templates: tuple[str, ...] = ("a photo of a {}",)
    others: tuple[str, ...] = ()
    judge: str | None = None
    seed: int = _number(1_000_000, least=0)
    steps: int = _number(28, least=1)
    guidance: float = _number(3.5, least=0)
    strength: float = 1.0
    batch: int = _number(16, least=1)
    examples: int = _number(8, least=1)
    attention_examples: int = _number(4, least=0)


@dataclass(frozen=True)
class Config:
    """A run.

    Attributes:
        concept: what is erased.
        prompts: sentences with the concept, or templates with "{}" in its place.
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
        iterations: each is one lower and one upper update.
        batch_size: samples an update.
        seed: of everything random in training.
        checkpoint_every: iterations between checkpoints.
        adapter: the LoRA.
        bank: what is prepared.
        lower: the erasing level.
        upper: the preserving level.
        evaluation: what follows training.
    """

    concept: str
    prompts: tuple[str, ...] = ("a photo of a {}",)
    synonyms: tuple[str, ...] = ()
    part_of_speech: str = _choice("noun", *PARTS_OF_SPEECH)
    irrelevant: tuple[str, ...] = ()
    language_model: bool = False
    model: str = "models/emoji-flux"
    dtype: str | None = _choice(None, "float32", "bfloat16")
    height: int = _number(512, least=1)
    width: int = _number(512, least=1)
    text_tokens: int | None = _number(None, least=2)
    steps: int = _number(28, least=1)
    guidance: float = _number(3.5, least=0)
    iterations: int = _number(1000, least=1)
    batch_size: int = _number(1, least=1)
    seed: int = _number(0, least=0)
    checkpoint_every: int = _number(100, least=1)
    adapter: AdapterConfig = AdapterConfig()
    bank: BankConfig = BankConfig()
    lower: Lower = Lower()
    upper: Upper = Upper()
    evaluation: Evaluation = Evaluation()


def configure(**changes: Any) -> ConfigDict:
    """The defaults with some changes, open to overrides; checked later, by `load_config`.

    Args:
        **changes: fields of `Config`; a dictionary for a part, for instance lower={"attn": 5.0}.
    """
    return ConfigDict(_merged(Config, changes))


def load_config(given: ConfigDict | Mapping[str, Any] | None) -> Config:
    """Checks a configuration and freezes it.

    Args:
        given: what a configuration file returned, overrides included.

    Raises:
        InputError: with a line for every field that is unknown or cannot be used.
    """
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
    values = given.to_dict() if isinstance(given, ConfigDict) else dict(given)
    problems: list[str] = []
    config = _built(Config, values, "", problems)
    if not problems:
        problems.extend(_contradictions(config))
    if problems:
        raise InputError("\n       ".join(problems))
    return config


def unknown(path: str) -> str:
    """What to say of a field that does not exist: its name and the nearest ones."""
    known = list(paths(Config))
    near = difflib.get_close_matches(path, known, n=3)
    # A field under the wrong part, or without one.
    last = path.rpartition(".")[2]
    near += [k for k in known if k.rpartition(".")[2] == last and k not in near]
    hint = f"did you mean {' or '.join(near)}?" if near else f"choose from {', '.join(known)}"
    return f"{path} is not a field of the configuration; {hint}"


def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def paths(cls: type, prefix: str = "") -> Iterator[str]:
    """Names of all fields, parts included, as overrides write them."""
    for name, hint in _hints(cls).items():
        yield prefix + name
        if dataclasses.is_dataclass(hint):
            yield from paths(typing.cast(type, hint), f"{prefix}{name}.")


def _merged(cls: type, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Defaults under changes, as nested dictionaries; unknown names are kept for later."""
    values = dict(changes)
    for spec in dataclasses.fields(cls):
        hint = _hints(cls)[spec.name]
        if dataclasses.is_dataclass(hint):
            given = changes.get(spec.name, {})
            nested = isinstance(given, Mapping)
            values[spec.name] = _merged(typing.cast(type, hint), given) if nested else given
        elif values.get(spec.name, spec.default) is None:
            # Overrides need to know the type of what is not there yet.
            values[spec.name] = placeholder(_present(hint))
        elif spec.default is not dataclasses.MISSING:
            value = values.setdefault(spec.name, spec.default)
            # In a file 5 stands for 5.0; left an integer, no fraction could override it.
            if _present(hint) is float and type(value) is int:
                values[spec.name] = float(value)
    return values


def _present(hint: Any) -> Any:
    """The type in "type | None"."""
    if isinstance(hint, types.UnionType):
        return next(part for part in typing.get_args(hint) if part is not type(None))
    return hint


def _built(cls: type, values: Mapping[str, Any], prefix: str, problems: list[str]) -> Any:
    """The dataclass `cls` from a dictionary; what is wrong is added to `problems`."""
    hints = _hints(cls)
    problems += [unknown(f"{prefix}{name}") for name in values if name not in hints]
    ready = {}
    for spec in dataclasses.fields(cls):
        path, hint = prefix + spec.name, hints[spec.name]
        if spec.name not in values:
            if spec.default is dataclasses.MISSING:
                problems.append(f"{path} is missing: give it a value")
        elif dataclasses.is_dataclass(hint) and isinstance(values[spec.name], Mapping):
            part = typing.cast(type, hint)
            ready[spec.name] = _built(part, values[spec.name], f"{path}.", problems)
        else:
            try:
                ready[spec.name] = _checked(hint, values[spec.name])
                _allowed(ready[spec.name], spec.metadata)
            except ValueError as error:
                problems.append(f"{path} = {values[spec.name]!r} must be {error}")
    return None if problems else cls(**ready)


def _checked(hint: Any, value: Any) -> Any:
    """The value in the type that its field has; a ValueError says what it must be."""
    if value is None and hint is not _present(hint):
        return None
    kind = _present(hint)
    if dataclasses.is_dataclass(kind):
        raise ValueError("a dictionary of fields")
    if kind is float:
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
        raise ValueError("a finite number")
    if kind is int:
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        raise ValueError("a whole number")
    if kind is bool:
        if isinstance(value, bool):
            return value
        raise ValueError("True or False")
    if kind is str:
        if isinstance(value, str):
            return value
        raise ValueError("text in quotes")
    if isinstance(value, list | tuple) and all(isinstance(v, str) and v.strip() for v in value):
        return tuple(value)
    raise ValueError("a tuple of texts, none of them empty, such as ('one', 'two')")


def _allowed(value: Any, limits: Mapping[str, Any]) -> None:
    """A ValueError says which values the field takes."""
    if value is None:
        return
    if value not in limits.get("choices", (value,)):
        raise ValueError(" or ".join(limits["choices"]))
    least, most, above = (limits.get(name) for name in ("least", "most", "above"))
    if least is not None and value < least:
        raise ValueError(f"at least {least}")
    if above is not None and value <= above:
        raise ValueError(f"above {above}")
    if most is not None and value > most:
        raise ValueError(f"at most {most}")


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
