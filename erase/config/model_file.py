"""Defaults of a model: the file `erase.json` in its folder, which `erase.runs.defaults` applies.

    {"place": {"height": 64, "width": 64, "evaluation": {"judge": "judge"}},
     "method": {"iterations": 300, "by_method": {"uce": {"uce": {"ridge": 50.0}}}},
     "kinds": {"entity": {"prompts": ["a photo of a {}"], "templates": ["a {}"], ...}},
     "things": [{"name": "cat", "kind": "entity", "group": "animal", "words": ["kitty"]}]}

`place` and `method` hold configuration fields: `place` those of any run on the model, `method` the
values that the model's authors found to erase well; a preset ignores `method`.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic

from flux_jax.errors import InputError
from flux_jax.system.files import read_bytes
from flux_jax.system.json_files import parse_json
from flux_jax.weights.source import root_of

FILE = "erase.json"

Text = Annotated[str, pydantic.Field(min_length=1, max_length=200)]
Template = Annotated[str, pydantic.Field(pattern=r"^[^{}]*\{\}[^{}]*$", max_length=200)]


class _Part(pydantic.BaseModel):
    # Not strict, since JSON has lists where these models have tuples.
    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)


class Thing(_Part):
    """Something that the model can draw.

    Attributes:
        name: the judge's name for it.
        kind: entity, style or relation.
        group: group of similar things; "" if unknown.
        written: its words in a sentence, if they differ from its name.
        words: other words for it, which no other thing shares.
        converse: name of the converse relation, of the second thing to the first.
        instead: what to draw in its place; "" leaves this to the sentence.
    """

    name: Text
    kind: Literal["entity", "style", "relation"]
    group: str = ""
    written: str = ""
    words: tuple[Text, ...] = ()
    converse: str = ""
    instead: str = ""

    @property
    def phrase(self) -> str:
        """Its words in a sentence."""
        return self.written or self.name

    @property
    def names(self) -> tuple[str, ...]:
        """All words for it, starting with those used in sentences."""
        return tuple(dict.fromkeys((self.phrase, self.name, *self.words)))


class Keep(_Part):
    """Pictures to preserve: templates and the things that fill them, both in turn.

    Attributes:
        templates: templates of the pictures' prompts.
        things: names of the things; by default all others of the erased concept's kind.
    """

    templates: tuple[Template, ...] = ()
    things: tuple[Text, ...] = ()


class Kind(_Part):
    """Settings for erasing things of one kind.

    Attributes:
        prompts: training sentences.
        beside: second part of a further training sentence, for something else beside the thing.
        templates: prompts of the evaluation.
        every_other: whether the evaluation covers all others of the kind, instead of a selection
            from those that the judge knows.
        keep: pictures to preserve.
        shared: configuration fields that runs trained at once share; see `method` above.
        own: configuration fields that may differ between these runs.
    """

    prompts: tuple[Template, ...]
    beside: Template | None = None
    templates: tuple[Template, ...]
    every_other: bool = False
    keep: Keep = Keep()
    shared: dict[str, Any] = {}
    own: dict[str, Any] = {}


class Known(_Part):
    """Content of a model's `erase.json`.

    Attributes:
        place: configuration fields of any run on the model; paths are relative to its folder.
        method: configuration fields that erase well on the model.
        kinds: settings for each kind of thing.
        things: things that the model can draw.
    """

    place: dict[str, Any] = {}
    method: dict[str, Any] = {}
    kinds: dict[Literal["entity", "style", "relation"], Kind] = {}
    things: tuple[Thing, ...] = ()

    def find(self, concept: str) -> Thing | None:
        """Find a concept among the things: by name, by its words in sentences, then by others.

        Args:
            concept: in upper or lower case.
        """
        wanted = " ".join(concept.casefold().split())
        for names in (lambda t: (t.name, t.phrase), lambda t: t.words):
            for thing in self.things:
                if wanted in (name.casefold() for name in names(thing)):
                    return thing
        return None

    def of_kind(self, kind: str) -> tuple[Thing, ...]:
        """The things of a kind."""
        return tuple(thing for thing in self.things if thing.kind == kind)


def read(model: str) -> Known | None:
    """Read `erase.json` in the model's folder; None if there is no such file.

    Args:
        model: the folder, or the transformer's single file in it.

    Raises:
        InputError: the file is damaged.
    """
    path = Path(model)
    try:
        path = root_of(path) / FILE
        if not path.is_file():
            return None
        return Known.model_validate(parse_json(read_bytes(path)))
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"])) or "file"
        raise InputError(
            f"{path}: {place}: {first['msg']}; fix the file, or remove it to run without the "
            "model's defaults"
        ) from None
    except OSError:
        # Not a model's path; opening the model reports it.
        return None
    except ValueError as error:
        raise InputError(
            f"{path} is not JSON ({error}); fix the file, or remove it to run without the model's "
            "defaults"
        ) from error
