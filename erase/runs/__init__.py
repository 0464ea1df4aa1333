"""Reads runs: what a configuration file says, checked and frozen.

A configuration file is Python with a function

    def get_config():
        return configure(concept="soccer ball", lower={"attn": 5.0})

that names what differs from the defaults, for a concept that the model knows no more than

        return configure(concept="guitar", model={"path": "models/emoji-flux"})

`--config FILE --config.lower.attn=2` changes it from the command line. Several runs that train at
once share what is named so and differ in

    each={"ball": {"concept": "soccer ball"}, "cat": {"concept": "cat", "seed": 1}}

and what only one of the methods is to have stands in

    by_method={"esd": {"iterations": 200, "esd": {"learning_rate": 1e-3}}}

What a file does not say follows the model (`erase.runs.defaults`), then the program's defaults
(`erase.config.schema`, `erase.methods.settings`); `erase.runs.presets` lists what counts
most. `load_runs` checks everything at once.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from operator import attrgetter
from typing import Any

from ml_collections import ConfigDict

from erase.config.fields import (
    build_dataclass,
    choice,
    fill_defaults,
    given_values,
    merge_fields,
    paths,
    shown,
)
from erase.config.schema import Config
from erase.data.words.spelling import mentions, same
from erase.data.words.templates import SLOT, as_template, phrase
from erase.methods import METHODS, OWNERS, fields_of
from erase.runs.defaults import Defaults
from erase.runs.presets import PRESETS
from flux_jax.errors import InputError, nearest

_FIELDS = {name: fields_of(name) for name in METHODS}
RunConfig: type[Config] = dataclasses.make_dataclass(
    "RunConfig",
    [
        ("method", str, choice(Config.method, *METHODS)),
        *(
            (name, method.settings, method.settings())
            for name, method in _FIELDS.items()
            if method.settings and not method.top_level
        ),
    ],
    bases=(*(m.settings for m in _FIELDS.values() if m.settings and m.top_level), Config),
    frozen=True,
    namespace={
        "__doc__": """A run: `Config` and the settings of all methods, made from `METHODS`.

        Settings at the top level are inherited (`config.lower`), others are a part (`config.esd`).
        """,
        # Where pickle looks for the class, which has no `class` statement.
        "__module__": __name__,
    },
)
# Holds what the runs that train at once differ in.
EACH = "each"
# Holds what methods differ in.
BY_METHOD = "by_method"
# Holds the name of the preset that a configuration starts from.
PRESET = "preset"
# Fields that may differ between runs trained together; all others are compile-time constants.
# Methods name further ones, their `per_run`.
PER_RUN_FIELDS = (
    "concept",
    "kind",
    "prompts",
    "synonyms",
    "part_of_speech",
    "sense",
    "irrelevant",
    "language_model",
    "more_prompts",
    "seed",
    "bank.shuffled",
    "evaluation",
)


def configure(preset: str = "", **changes: Any) -> ConfigDict:
    """Some changes, open to overrides; completed by defaults and checked later, by `load_runs`.

    Until then fields that are not given show the program's defaults, not yet the model's.

    Args:
        preset: a name in `erase.runs.presets`, whose values the changes go on top of.
        **changes: fields of `Config`; a dictionary for a part, for instance lower={"attn": 5.0}.

    Raises:
        InputError: there is no such preset, or a name is none that can be overridden.
    """
    if preset and preset not in PRESETS:
        raise InputError(f"preset = {preset!r} is unknown; {nearest(preset, PRESETS)}")
    base = {PRESET: preset, **PRESETS[preset]} if preset else {}
    try:
        return ConfigDict(fill_defaults(RunConfig, merge_fields(base, changes)))
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        # Such names are no fields either; all others are told of later, at once.
        raise InputError(
            f"config: {error}; name fields as erase/config/schema.py does, parts like "
            'lower={"attn": 2}'
        ) from error


def load_runs(given: object, overrides: Mapping[str, Any] | None = None) -> dict[str, Config]:
    """Checks a configuration and freezes it.

    Args:
        given: what a configuration file returned, overrides included; or a dictionary of fields,
            as a run's folder keeps them, which is not completed by its model's defaults.
        overrides: fields that the command line changed, by their paths: they count more than what
            the file has for the method.

    Returns:
        A configuration for each run by its name, which is that of its folder; the name is empty
        where there is only the one run.

    Raises:
        InputError: with a line for every field that is unknown or cannot be used.
    """
    values = plain(given)
    # Fields that a dictionary lacks are the program's to fill in, whatever model it names.
    follows_model = isinstance(given, ConfigDict)
    preset = values.pop(PRESET, "") if follows_model else ""
    values = _of_method(values, overrides or {})
    if EACH not in values:
        defaults = Defaults([values], preset) if follows_model else None
        return {"": _completed(values, defaults)}
    each = values.pop(EACH)
    if not isinstance(each, Mapping) or not all(isinstance(e, Mapping) for e in each.values()):
        raise InputError(f"{EACH} must hold a dictionary of fields for each run, by its name")
    if not each:
        raise InputError(f"{EACH} = {{}} is empty: name a run, or leave it out")
    given_runs = {name: merge_fields(values, changes) for name, changes in each.items()}
    defaults = Defaults(given_runs.values(), preset) if follows_model else None
    runs, problems = {}, []
    for name, own in given_runs.items():
        try:
            # Four bytes a letter at most, and 255 a folder's name.
            if not (isinstance(name, str) and re.fullmatch(r"[\w-]{1,60}", name)):
                raise InputError("a name becomes a folder's: use 1 to 60 letters, digits, _ and -")
            runs[name] = _completed(own, defaults)
        except InputError as error:
            word = name if isinstance(name, str) else shown(name)
            problems.append(f"{EACH}.{word}: {error}")
    problems += [] if problems else _differences(runs)
    if problems:
        raise InputError("\n       ".join(problems))
    return runs


def load_config(given: object) -> Config:
    """`load_runs` for a configuration of one run.

    Raises:
        InputError: with a line for every field that is unknown or cannot be used.
    """
    values = plain(given)
    preset = values.pop(PRESET, "") if isinstance(given, ConfigDict) else ""
    values = _of_method(values, {})
    return _completed(values, Defaults([values], preset) if isinstance(given, ConfigDict) else None)


def _completed(values: Mapping[Any, Any], defaults: Defaults | None) -> Config:
    """A run's configuration: the fields that were given, on top of those that suit its model.

    Raises:
        InputError: with a line for every field that is unknown or cannot be used.
    """
    problems: list[str] = []
    values = _of_method(dict(values), {})
    # A sense may be a number, as on the command line.
    if isinstance(values.get("sense"), int) and not isinstance(values["sense"], bool):
        values["sense"] = str(values["sense"])
    config = build_dataclass(
        RunConfig, merge_fields(defaults.of(values), values) if defaults else values, problems
    )
    if problems and defaults:
        given: list[str] = []
        build_dataclass(RunConfig, values, given)
        file = defaults.file(values)
        problems = [each if each in given else f"{file}: {each}" for each in problems]
    if not problems:
        problems.extend(_contradictions(config))
    if problems:
        raise InputError("\n       ".join(problems))
    return config


def _of_method(values: dict[Any, Any], overrides: Mapping[Any, Any]) -> dict[Any, Any]:
    """The values of the method that is chosen, and overrides on top.

    Raises:
        InputError: an override is another method's, or what methods differ in is no dictionary.
    """
    by_method = values.pop(BY_METHOD, {})
    method = overrides.get("method", values.get("method", Config.method))
    parts = by_method.values() if isinstance(by_method, Mapping) else [None]
    if not all(isinstance(part, Mapping) for part in parts):
        raise InputError(
            f"{BY_METHOD} must hold a dictionary of fields for each method, by its name"
        )
    problems = [
        f"{BY_METHOD}.{name} is no method; {nearest(str(name), METHODS)}"
        for name in by_method
        if name not in METHODS
    ]
    # What is no name of a method is told of with the other fields.
    if isinstance(method, str) and method in METHODS:
        for path in overrides:
            owner = OWNERS.get(path.partition(".")[0])
            if owner not in (None, method):
                problems.append(
                    f"{path} is a setting of another method, and method = {method!r}: leave it "
                    f"out, or choose --config.method={owner}"
                )
        values = merge_fields(values, by_method.get(method, {}))
    if problems:
        raise InputError("\n       ".join(problems))
    for path, value in overrides.items():
        nested: Any = value
        for name in reversed(path.split(".")):
            nested = {name: nested}
        values = merge_fields(values, nested)
    return values


def _differences(runs: Mapping[str, Config]) -> Iterator[str]:
    """What keeps runs from training at once."""
    first, *others = runs
    name = runs[first].method
    method = fields_of(name)
    prefix = "" if method.top_level else f"{name}."
    free = (*PER_RUN_FIELDS, *(f"{prefix}{setting}" for setting in method.per_run))
    fields = set(paths(RunConfig))
    for path in sorted(fields - {path.rpartition(".")[0] for path in fields}):
        # What another method would look at does not matter.
        if path.startswith(free) or OWNERS.get(path.partition(".")[0], name) != name:
            continue
        value = attrgetter(path)
        for other in others:
            if value(runs[other]) != value(runs[first]):
                yield (
                    f"{EACH}.{other}.{path} = {value(runs[other])!r} and {EACH}.{first}.{path} = "
                    f"{value(runs[first])!r}: runs that train at once share it"
                )


def plain(given: Any) -> dict[Any, Any]:
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
    try:
        return given_values(given) if isinstance(given, ConfigDict) else dict(given)
    except (RecursionError, TypeError, ValueError) as error:
        raise InputError(f"config: {error}; every field's and run's name must be text") from error


def _contradictions(config: Config) -> Iterator[str]:
    """What is wrong between fields that are right by themselves."""
    for name, words in (
        ("concept", (config.concept,)),
        ("synonyms", config.synonyms),
        ("irrelevant", config.irrelevant),
    ):
        for word in words:
            if not word.isprintable() or set("{}") & set(word):
                yield f"{name} = {shown(word)} holds braces or a line break: give plain words"
                return
            try:
                mentions("", word)
            except InputError as error:
                yield str(error).replace("concept", name, 1)
                return
    if not config.prompts:
        yield "prompts = () is empty: give sentences with the concept"
    for prompt in config.prompts:
        try:
            template = as_template(prompt, config.concept)
        except InputError as error:
            yield str(error)
            continue
        if not mentions(phrase(template, config.concept), config.concept):
            yield (
                f'prompts: {shown(prompt)} has "{SLOT}" within another word; put a space between'
            )
    if not config.adapter.targets:
        yield "adapter.targets = () is empty: name layers of the transformer"
    # Other forms, as "cherries" for "cherry", are synonyms like any.
    if config.concept.casefold() in (word.casefold() for word in config.synonyms):
        yield f"synonyms = {shown(config.synonyms)} holds the concept itself: leave it out"
    for word in config.irrelevant:
        if any(same(word, own) for own in (config.concept, *config.synonyms)):
            yield f"irrelevant: {shown(word)} is the concept or a synonym of it: leave it out"
    for template in config.evaluation.templates:
        if SLOT not in template:
            yield f'evaluation.templates: {shown(template)} needs "{SLOT}" where the word goes'
    if not config.evaluation.templates:
        yield f'evaluation.templates = () is empty: give prompts such as "a photo of a {SLOT}"'
    yield from fields_of(config.method).problems(config)
