"""Defaults that depend on the model: values that suit it, and words for the concept.

They come from the model's folder (`erase.config.model_file`). FLUX.1 [dev] and [schnell], whose
folders have no such file, get the paper's values, and sentences that suit any noun, adjective,
verb, style or relation. Configuration files and the command line take precedence over all of them.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any

from erase.config import model_file
from erase.config.fields import merge_fields
from erase.config.model_file import Kind, Known, Thing
from erase.config.schema import KINDS, Config
from erase.data.words.irrelevant import COMMON
from erase.data.words.templates import SLOT, phrase
from erase.runs.presets import ONE_SAMPLE, PRESETS
from flux_jax.errors import InputError
from flux_jax.weights.hub import check_shipped
from flux_jax.weights.source import open_source, read_config, root_of

Fields = dict[str, Any]
# Irrelevant words of an entity: NEAR things of its group, and one from each of FAR other groups.
NEAR, FAR = 4, 5
# Widths of T5-XXL's encoding and of a packed latent identify a FLUX.1 of any depth.
FLUX = {"joint_attention_dim": 4096, "in_channels": 64}
_OF_FLUX = Known(
    place={
        "model": {"dtype": "bfloat16"},
        "height": 512,
        "width": 512,
        "text_tokens": 256,
        # Without a judge, for viewing.
        "evaluation": {"pictures": 8, "batch": 2},
    },
    method=merge_fields(PRESETS["paper"], {"by_method": ONE_SAMPLE}),
)
# [schnell] is distilled to four steps.
_OF_SCHNELL = _OF_FLUX.model_copy(
    update={
        "place": merge_fields(_OF_FLUX.place, {"steps": 4, "evaluation": {"steps": 4}}),
        "method": merge_fields(_OF_FLUX.method, {"steps": 4}),
    }
)
# Sentences for concepts without a model file; the evaluation uses the first two.
_SENTENCES: Mapping[str, tuple[str, ...]] = {
    "noun": (
        "a photo of a {}",
        "a picture of a {}",
        "a painting of a {}",
        "a drawing of a {}",
        "a {} seen from close by",
        "a {} in the open air",
    ),
    "adjective": (
        "a photo of a {} adult",
        "a painting of a {} adult",
        "a drawing of a {} adult",
        "a {} adult standing by a window",
        "a photo of something {}",
        "a picture of a {} scene",
    ),
    "verb": (
        "a photo of two adults who {}",
        "a painting of two adults who {}",
        "a drawing of two people who {}",
        "a picture of friends who {}",
        "two adults who {} in a park",
        "people who {} in the street",
    ),
    "style": (
        "a painting in the style of {}",
        "a picture in the style of {}",
        "a portrait of an old man in the style of {}",
        "a landscape with a river in the style of {}",
        "a bowl of fruit in the style of {}",
        "a city street in the style of {}",
    ),
    "relation": (
        "a photo of a dog {} a chair",
        "a picture of a cat {} a box",
        "a painting of a cup {} a book",
        "a drawing of a ball {} a table",
        "a child {} a tree",
        "a bird {} a house",
    ),
}
# Irrelevant words for sentences that the common ones, which are nouns, do not fit.
_OTHERS: Mapping[str, tuple[str, ...]] = {
    "adjective": ("clothed", "smiling", "seated", "elderly", "tall", "famous", "wooden", "distant"),
    "verb": ("walk", "read", "talk", "eat", "sit", "wait", "work", "laugh"),
    "style": ("a photograph", "a pencil sketch", "a mosaic", "pixel art", "a woodcut", "a comic"),
    "relation": ("near", "next to", "far from", "in front of", "beside", "across from"),
}


def of_model(model: str) -> Known | None:
    """Defaults of a model: from the file in its folder, or those of FLUX.1; else None.

    Args:
        model: as in `Config.model.path`.

    Raises:
        InputError: the folder's file is damaged, or it is a folder of this repository's `models`
            that does not exist.
    """
    check_shipped(model)
    if model_defaults := model_file.read(model):
        return model_defaults
    guided = _guidance(model)
    return None if guided is None else _OF_FLUX if guided else _OF_SCHNELL


def _guidance(model: str) -> bool | None:
    """Whether a FLUX.1 embeds guidance ([dev] does, [schnell] does not); None for other models."""
    try:
        if not Path(model).exists():
            # A name on the hub, known without a request.
            owner, _, name = model.rpartition("/")
            named = owner and name.casefold().startswith("flux.1-")
            return "schnell" not in name.casefold() if named else None
        file = Path(model) / "transformer" / "config.json"
        single = open_source(Path(model), "transformer").config if not file.is_file() else None
        config = single or read_config(file)
    except (InputError, OSError, ValueError):
        # Opening the model reports the error.
        return None
    fits = isinstance(config, Mapping) and all(config.get(n) == size for n, size in FLUX.items())
    return bool(config.get("guidance_embeds", False)) if fits else None


class Defaults:
    """Default fields for the runs of one configuration. Each model's file is read once."""

    def __init__(self, runs: Iterable[Mapping[Any, Any]], preset: str):
        """Collect the kinds of all runs, since runs trained at once share most fields.

        Args:
            runs: nested fields set for each run; values may have any type.
            preset: preset whose values replace the model's fields for the method; "" for none.
        """
        self._models: dict[str, Known | None] = {}
        self._preset = preset
        self._kinds = [kind for kind in KINDS if kind in {self._kind(run) for run in runs}]

    def of(self, run: Mapping[Any, Any]) -> Fields:
        """Default fields of a run; they may include fields that are set.

        Args:
            run: the fields set for the run.

        Raises:
            InputError: the model's file is damaged, or knows the concept by another name.
        """
        model = self._model(run)
        if model is None:
            return {}
        place = _in_folder(model.place, self.file(run).parent)
        concept = _text(run, "concept")
        words = words_for(model, concept, self._kind(run), run) if concept else {}
        if self._preset:
            # A preset sets all fields of a method except its words.
            return merge_fields(place, without_method(words))
        kinds = (model.kinds[kind].shared for kind in self._kinds if kind in model.kinds)
        values = reduce(merge_fields, (place, model.method, *kinds, words))
        by_method = values.pop("by_method", {})
        method = run.get("method", Config.method)
        return merge_fields(values, by_method.get(method, {}) if isinstance(method, str) else {})

    def file(self, run: Mapping[Any, Any]) -> Path:
        """Path of the run's model file, which may not exist."""
        path = Path(_text(run, "model", "path") or Config.model.path)
        # Only a valid model path has a root folder.
        return (root_of(path) if self._model(run) else path) / model_file.FILE

    def _model(self, run: Mapping[Any, Any]) -> Known | None:
        part = run.get("model", {})
        path = part.get("path", Config.model.path) if isinstance(part, Mapping) else None
        if not isinstance(path, str):
            return None
        if path not in self._models:
            self._models[path] = of_model(path)
        return self._models[path]

    def _kind(self, run: Mapping[Any, Any]) -> str:
        """Kind of a run's concept: as set, as in its model's file, else an entity."""
        if (kind := run.get("kind")) is not None:
            return kind if kind in KINDS else ""
        model, concept = self._model(run), _text(run, "concept")
        thing = model.find(concept) if model and concept else None
        return thing.kind if thing else "entity"


def words_for(model: Known, concept: str, kind: str, run: Mapping[Any, Any]) -> Fields:
    """Sentences and words for a concept, and the method's fields that depend on it.

    Args:
        model: defaults of the model.
        concept: concept to erase.
        kind: kind of the concept.
        run: the fields set for the run.

    Raises:
        InputError: the model knows the concept by another name.
    """
    thing = model.find(concept)
    if thing and thing.kind != kind:
        thing = None
    if kind not in model.kinds:
        return _general(concept, kind if run.get("kind") else "", run)
    if thing and concept != thing.phrase and not run.get("prompts"):
        # The judge and the sentences use that name.
        raise InputError(
            f"concept = {concept!r} is what the model knows as {thing.phrase!r}: use that name, or "
            "give your own prompts"
        )
    return _of_kind(model, model.kinds[kind], thing, concept, kind, run)


def _of_kind(
    model: Known, how: Kind, thing: Thing | None, concept: str, kind: str, run: Mapping[Any, Any]
) -> Fields:
    """Fields from the model file's settings of a kind, for one concept."""
    names = (concept, *(thing.names if thing else ()), *_texts(run, "synonyms"))
    apart = {word.casefold() for word in names}
    irrelevant = {word.casefold() for word in _texts(run, "irrelevant")}
    synonyms = [
        word
        for word in (thing.names if thing else ())
        if word.casefold() != concept.casefold() and word.casefold() not in irrelevant
    ]
    # The name of a thing with other words in sentences is not one of its synonyms.
    if thing and thing.written:
        synonyms = [word for word in synonyms if word != thing.name]
    every = [each for each in model.of_kind(kind) if not apart.intersection(_folded(each.names))]
    # "left of" and "right of" show the same pictures, so a converse is not another thing.
    others = [each for each in every if not thing or each.name != thing.converse]
    near, words = [], [each.phrase for each in others]
    if any(each.group for each in others):
        near, far = _near(thing, others, model)
        words = [*far, *near]
    kept = [name for name in how.keep.things if name.casefold() not in apart]
    fillers = kept or [each.phrase for each in others]
    values: Fields = {
        "kind": kind,
        "prompts": (*how.prompts, *_beside(how, thing, kept, model)),
        # Setting a sense requests WordNet's synonyms.
        "synonyms": () if run.get("sense") else tuple(synonyms),
        "irrelevant": tuple(words),
        "evaluation": {
            "templates": how.templates,
            "others": tuple(each.phrase for each in every) if how.every_other else (),
        },
    }
    upper = run.get("upper", {})
    if how.keep.templates and fillers and not _brings_prompts(upper):
        values["upper"] = {"prompts": _pairs(how.keep.templates, fillers)}
    instead = thing.instead if thing else ""
    place = instead or (near or words or [""])[0]
    return reduce(merge_fields, (values, how.own, _anchors(place, instead)))


def _near(
    thing: Thing | None, others: Sequence[Thing], model: Known
) -> tuple[list[str], list[str]]:
    """Things of the concept's group, starting after it, and one thing from each of some others."""
    group = thing.group if thing else ""
    at = model.things.index(thing) if thing else 0
    before = {id(each) for each in model.things[:at]}
    turned = sorted(others, key=lambda each: id(each) in before)
    near = [each.phrase for each in turned if group and each.group == group][:NEAR]
    firsts: dict[str, str] = {}
    for each in others:
        if each.group != group:
            firsts.setdefault(each.group, each.phrase)
    return near, list(firsts.values())[:FAR]


def _beside(how: Kind, thing: Thing | None, kept: Sequence[str], model: Known) -> Sequence[str]:
    """The sentence with the concept beside a thing of another group."""
    groups = {each.name: each.group for each in model.things}
    apart = [name for name in kept if not thing or groups.get(name) != thing.group]
    if how.beside is None or not apart:
        return ()
    # Varies between concepts.
    at = model.things.index(thing) if thing else 0
    return (f"a {SLOT} {phrase(how.beside, apart[at % len(apart)])}",)


def _pairs(templates: Sequence[str], words: Sequence[str]) -> tuple[str, ...]:
    """Pair templates and words in turn, so that each occurs at least once."""
    count = max(len(templates), len(words))
    return tuple(phrase(templates[i % len(templates)], words[i % len(words)]) for i in range(count))


def _brings_prompts(upper: Any) -> bool:
    """Whether `upper` sets its own pictures: a folder, or prompts without the concept."""
    given = upper if isinstance(upper, Mapping) else {}
    return bool(given.get("folder")) or bool(given.get("without_concept"))


def _anchors(place: str, instead: str) -> Fields:
    """Fields of every method for what it leads the concept to.

    Args:
        place: words that can replace the concept; "" if none are known.
        instead: words that replace it in L_esd; "" keeps the empty prompt.
    """
    values: Fields = {}
    if place:
        values |= {
            **{name: {"anchor": place} for name in ("concept_ablation", "gem", "eraseflow")},
            "mace": {"stand_in": place},
            "uce": {"guide": place},
        }
    if instead:
        levels = ("lower", "esd", "eap", "meta_unlearning")
        values |= {name: {"stand_in": instead} for name in levels}
    return values


def _general(concept: str, kind: str, run: Mapping[Any, Any]) -> Fields:
    """Sentences and words for any concept of a model whose things are not known."""
    part = run.get("part_of_speech", Config.part_of_speech)
    sort = kind if kind in ("style", "relation") else part
    if not isinstance(sort, str) or sort not in _SENTENCES:
        return {}
    names = _folded((concept, *_texts(run, "synonyms")))
    others = [word for word in _OTHERS.get(sort, COMMON) if word.casefold() not in names]
    sentences = _SENTENCES[sort]
    seen = _texts(run, "irrelevant") or others
    return {
        "prompts": sentences,
        "irrelevant": tuple(others),
        "evaluation": {"templates": sentences[:2], "others": tuple(seen[:3])},
    }


def without_method(words: Fields) -> Fields:
    """Remove the method's fields, which a preset sets, from the words for a concept."""
    levels = ("lower", "upper", "bank", "adapter", "batch_size", "iterations")
    shared = {name: value for name, value in words.items() if name not in levels}
    evaluation = {n: v for n, v in shared.get("evaluation", {}).items() if n != "strength"}
    return shared | {"evaluation": evaluation}


def _in_folder(place: Fields, folder: Path) -> Fields:
    """Resolve the judge's path relative to the model's folder."""
    judge = place.get("evaluation", {}).get("judge")
    return merge_fields(place, {"evaluation": {"judge": str(folder / judge)}}) if judge else place


def _folded(words: Iterable[str]) -> set[str]:
    return {word.casefold() for word in words}


def _text(run: Mapping[Any, Any], *names: str) -> str:
    """A text field that is set; "" if it is missing or not text."""
    value: Any = run
    for name in names:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value if isinstance(value, str) and value.strip() else ""


def _texts(run: Mapping[Any, Any], name: str) -> tuple[str, ...]:
    """A field of several texts that is set; empty if it is missing or not a list."""
    value = run.get(name, ())
    return tuple(v for v in value if isinstance(v, str)) if isinstance(value, list | tuple) else ()
