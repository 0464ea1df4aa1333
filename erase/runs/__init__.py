"""Read configuration files of runs, check them and freeze them.

A configuration file is Python with a function

    def get_config():
        return configure(concept="soccer ball", lower={"attn": 5.0})

that sets the fields that differ from the defaults. For a concept that the model knows, this is
enough:

        return configure(concept="guitar", model={"path": "models/emoji-flux"})

`--config FILE --config.lower.attn=2` overrides a field on the command line. Several runs trained at
once share these fields, and differ in

    each={"ball": {"concept": "soccer ball"}, "cat": {"concept": "cat", "seed": 1}}

Fields for only one of the methods are in

    by_method={"esd": {"iterations": 200, "esd": {"learning_rate": 1e-3}}}

Other fields get the model's defaults (`erase.runs.defaults`), then the program's
(`erase.config.schema`, `erase.methods.settings`); `erase.runs.presets` lists the order of
precedence. `load_runs` checks everything at once.
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
        "__doc__": """A run: `Config` and the settings of all methods, built from `METHODS`.

        Top-level settings are inherited (`config.lower`), others are a section (`config.esd`).
        """,
        # Module where pickle finds the class, which has no `class` statement.
        "__module__": __name__,
    },
)
# Fields that differ between runs trained at once.
EACH = "each"
# Fields that differ between methods.
BY_METHOD = "by_method"
# Name of the preset that a configuration starts from.
PRESET = "preset"
# Fields that may differ between runs trained together; all others are compile-time constants.
# Methods add further ones, their `per_run`.
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
    """Create a configuration that can be overridden; `load_runs` adds defaults and checks it later.

    Until then unset fields show the program's defaults, not the model's.

    Args:
        preset: a name in `erase.runs.presets`; the changes take precedence over its values.
        **changes: fields of `Config`; a dictionary for a section, such as lower={"attn": 5.0}.

    Raises:
        InputError: the preset is unknown, or a name cannot be a field's.
    """
    if preset and preset not in PRESETS:
        raise InputError(f"preset = {preset!r} is unknown; {nearest(preset, PRESETS)}")
    base = {PRESET: preset, **PRESETS[preset]} if preset else {}
    try:
        return ConfigDict(fill_defaults(RunConfig, merge_fields(base, changes)))
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        # Only names that ConfigDict refuses; all other errors are reported later, together.
        raise InputError(
            f"config: {error}; use the field names of erase/config/schema.py, and sections such as "
            'lower={"attn": 2}'
        ) from error


def load_runs(given: object, overrides: Mapping[str, Any] | None = None) -> dict[str, Config]:
    """Check a configuration and freeze it.

    Args:
        given: the return value of a configuration file, including overrides; or a dictionary of
            fields, as saved in a run's folder, which does not get its model's defaults.
        overrides: fields changed on the command line, by their paths. They take precedence over the
            file's values for the method.

    Returns:
        The configuration of each run, by its name, which is the name of its folder; the name is
        empty if there is only one run.

    Raises:
        InputError: with one line per field that is unknown or cannot be used.
    """
    values = plain(given)
    # Fields missing in a dictionary get the program's defaults, whatever its model is.
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
            # At most four bytes per letter, and 255 bytes per folder name.
            if not (isinstance(name, str) and re.fullmatch(r"[\w-]{1,60}", name)):
                raise InputError(
                    "a run's name is also its folder's: use 1 to 60 letters, digits, _ and -"
                )
            runs[name] = _completed(own, defaults)
        except InputError as error:
            word = name if isinstance(name, str) else shown(name)
            problems.append(f"{EACH}.{word}: {error}")
    problems += [] if problems else _differences(runs)
    if problems:
        raise InputError("\n       ".join(problems))
    return runs


def load_config(given: object) -> Config:
    """Check and freeze the configuration of one run, as `load_runs` does.

    Raises:
        InputError: with one line per field that is unknown or cannot be used.
    """
    values = plain(given)
    preset = values.pop(PRESET, "") if isinstance(given, ConfigDict) else ""
    values = _of_method(values, {})
    return _completed(values, Defaults([values], preset) if isinstance(given, ConfigDict) else None)


def _completed(values: Mapping[Any, Any], defaults: Defaults | None) -> Config:
    """Complete a run's fields with its model's defaults, and build the configuration.

    Raises:
        InputError: with one line per field that is unknown or cannot be used.
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
    """Apply the values of the chosen method, then the overrides.

    Raises:
        InputError: an override belongs to another method, or `by_method` is not a dictionary of
            dictionaries by method.
    """
    by_method = values.pop(BY_METHOD, {})
    method = overrides.get("method", values.get("method", Config.method))
    parts = by_method.values() if isinstance(by_method, Mapping) else [None]
    if not all(isinstance(part, Mapping) for part in parts):
        raise InputError(
            f"{BY_METHOD} must hold a dictionary of fields for each method, by its name"
        )
    problems = [
        f"{BY_METHOD}.{name} is not a method; {nearest(str(name), METHODS)}"
        for name in by_method
        if name not in METHODS
    ]
    # An unknown method is reported with the other fields.
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
    """Describe differences that prevent runs from training at once."""
    first, *others = runs
    name = runs[first].method
    method = fields_of(name)
    prefix = "" if method.top_level else f"{name}."
    free = (*PER_RUN_FIELDS, *(f"{prefix}{setting}" for setting in method.per_run))
    fields = set(paths(RunConfig))
    for path in sorted(fields - {path.rpartition(".")[0] for path in fields}):
        # Settings of other methods are not used.
        if path.startswith(free) or OWNERS.get(path.partition(".")[0], name) != name:
            continue
        value = attrgetter(path)
        for other in others:
            if value(runs[other]) != value(runs[first]):
                yield (
                    f"{EACH}.{other}.{path} = {value(runs[other])!r} and {EACH}.{first}.{path} = "
                    f"{value(runs[first])!r}: it must be the same for runs trained at once"
                )


def plain(given: Any) -> dict[Any, Any]:
    """Convert the return value of a configuration file to dictionaries."""
    if given is None:
        raise InputError(
            "--config is missing: give --config FILE; `erase-anything new CONCEPT --model MODEL` "
            "writes one"
        )
    if not isinstance(given, Mapping | ConfigDict):
        try:
            # The placeholder of an unreadable file raises its error on any access.
            getattr(given, "concept", None)
        except OSError as error:
            raise InputError(f"config: {error}; check the path") from error
        kind = type(given).__name__
        raise InputError(f"config: get_config() returned a {kind}; return configure(...) from it")
    try:
        return given_values(given) if isinstance(given, ConfigDict) else dict(given)
    except (RecursionError, TypeError, ValueError) as error:
        raise InputError(f"config: {error}; every field's and run's name must be text") from error


def _contradictions(config: Config) -> Iterator[str]:
    """Describe fields that contradict each other, though each is valid."""
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
    # Other forms, such as "cherries" for "cherry", are valid synonyms.
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
