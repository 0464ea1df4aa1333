"""What a model's folder says about it: `erase.json`, which `erase.runs.defaults` makes use of.

    {"place": {"height": 64, "width": 64, "evaluation": {"judge": "judge"}},
     "method": {"iterations": 300, "by_method": {"uce": {"uce": {"ridge": 50.0}}}},
     "kinds": {"entity": {"prompts": ["a photo of a {}"], "templates": ["a {}"], ...}},
     "things": [{"name": "cat", "kind": "entity", "group": "animal", "words": ["kitty"]}]}

`place` and `method` hold fields of a configuration: `place` what any run on the model has, `method`
what its authors found to erase well, which a preset leaves out.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic

from flux_jax.errors import InputError
from flux_jax.weights.source import root_of

FILE = "erase.json"

Text = Annotated[str, pydantic.Field(min_length=1, max_length=200)]
Template = Annotated[str, pydantic.Field(pattern=r"^[^{}]*\{\}[^{}]*$", max_length=200)]


class _Part(pydantic.BaseModel):
    # JSON has lists where these have tuples, so that the types are not strict.
    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)


class Thing(_Part):
    """Something that the model can draw.

    Attributes:
        name: what the judge calls it.
        kind: what it is.
        group: things of one group are alike; "" where that is not known.
        written: how it stands in a sentence, where that is not its name.
        words: other words for it, which no other thing shares.
        converse: name of the relation in which the second thing then stands to the first.
        instead: what to draw in its place; "" where it is left to the sentence.
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
        """The words that stand in a sentence."""
        return self.written or self.name

    @property
    def names(self) -> tuple[str, ...]:
        """All words for it, that of sentences first."""
        return tuple(dict.fromkeys((self.phrase, self.name, *self.words)))


class Keep(_Part):
    """Pictures to hold on to: templates, and what comes into them, both in turn.

    Attributes:
        templates: of the pictures' prompts.
        things: names of what they show; by default all others of the erased concept's kind.
    """

    templates: tuple[Template, ...] = ()
    things: tuple[Text, ...] = ()


class Kind(_Part):
    """How things of one kind are erased.

    Attributes:
        prompts: sentences to train with.
        beside: a further sentence's second part, for something else that stands beside the thing.
        templates: prompts of the evaluation.
        every_other: whether the evaluation looks for all others of the kind, rather than choosing
            among what the judge knows.
        keep: pictures to hold on to.
        shared: fields of a configuration that runs which train at once share; see `method` above.
        own: fields that each run has for itself.
    """

    prompts: tuple[Template, ...]
    beside: Template | None = None
    templates: tuple[Template, ...]
    every_other: bool = False
    keep: Keep = Keep()
    shared: dict[str, Any] = {}
    own: dict[str, Any] = {}


class Known(_Part):
    """What a model's folder says.

    Attributes:
        place: fields of a configuration that any run on the model has; paths in the model's folder.
        method: fields that suit the model.
        kinds: how things of each kind are erased.
        things: that the model can draw.
    """

    place: dict[str, Any] = {}
    method: dict[str, Any] = {}
    kinds: dict[Literal["entity", "style", "relation"], Kind] = {}
    things: tuple[Thing, ...] = ()

    def find(self, concept: str) -> Thing | None:
        """The thing that a concept is: by its name, as it stands in sentences, or by other words.

        Args:
            concept: in any case.
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
    """What the model's folder says; None where there is no such file.

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
        return Known.model_validate_json(path.read_bytes())
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"])) or "file"
        raise InputError(
            f"{path}: {place}: {first['msg']}; mend the file, or remove it to go without the "
            "model's defaults"
        ) from None
    except (OSError, ValueError):
        # No path of a model; whoever opens the model says so.
        return None
