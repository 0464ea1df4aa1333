"""Judges: whatever looks at pictures and says whether each shows what it should.

Evaluation, attacks, calibration, early stopping and comparisons use the protocol `Judge` only. The
small model's judge is a network (`erase.evaluation.emoji_judge`); CLIP or a detector is another
file:

1. Write a class with the attributes and methods of `Judge`, and a class method `load(folder)`.
2. Give it a name: `JUDGES["clip"] = "my_judges.clip:ClipJudge"`, here or in your configuration's
   file.
3. Make a folder whose `config.json` holds `{"type": "clip"}`, and whatever `load` reads besides.
4. Set `evaluation.judge` to the folder: `--config.evaluation.judge=FOLDER`.

A judge of one kind of concepts returns that kind for every label and no labels of the others. One
that takes any word returns it from `label` as it is; name what should stay in `evaluation.others`.
Axis letters: B pictures, h w picture sides, F features.
"""

import functools
import os
import pkgutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, UInt8

from erase.runtime.files import read_json
from flux_jax.errors import InputError

Kind = Literal["entity", "style", "relation"]


CONFIG = "config.json"


# The class of each type of judge, "module:class". A folder that names no type holds a network.
JUDGES = {"network": "erase.evaluation.emoji_judge:NetworkJudge"}


@runtime_checkable
class Judge(Protocol):
    """What looks at pictures, in uint8 as they are written."""

    @property
    def size(self) -> int | None:
        """Height and width of the pictures that it takes, in pixels; None: of any size."""
        ...

    def label(self, concept: str) -> str:
        """The label by which a concept is judged, often the concept itself.

        Raises:
            InputError: the judge does not know the concept.
        """
        ...

    def kind(self, concept: str) -> Kind:
        """What sort of concept it is; results are summed up by it.

        Raises:
            InputError: the judge does not know the concept.
        """
        ...

    def labels(self, kind: Kind) -> Sequence[str]:
        """All labels of a kind: what should stay where `evaluation.others` names nothing."""
        ...

    def check_prompt(self, label: str, prompt: str) -> None:
        """Refuses a prompt whose pictures could not be judged by the label; cheap.

        Raises:
            InputError: what the prompt lacks.
        """
        ...

    def finds(
        self, pictures: UInt8[np.ndarray, "B h w 3"], labels: Sequence[str], prompts: Sequence[str]
    ) -> Bool[np.ndarray, "B"]:
        """Whether each picture shows its label.

        Args:
            pictures: of `size`, if that is set.
            labels: one a picture, as `label` gives them.
            prompts: that the pictures were drawn from, for judges that need them.
        """
        ...

    def features(self, pictures: UInt8[np.ndarray, "B h w 3"]) -> Float[np.ndarray, "B F"]:
        """A vector for each picture, for Fréchet's distance between sets of pictures."""
        ...


def read_config(folder: str | Path) -> dict[str, Any]:
    """What a judge's `config.json` holds.

    Raises:
        InputError: it is missing or damaged.
    """
    path = Path(folder) / CONFIG
    if not os.path.isfile(path):
        raise InputError(f"judge = {str(folder)!r} has no {CONFIG}; check the path")
    return read_json(path)


@functools.lru_cache(maxsize=1)
def open_judge(folder: str | Path) -> Judge:
    """Opens a judge's folder; the last one is kept, since many runs in a row ask the same.

    Raises:
        InputError: a file is missing or broken, or the judge's type is unknown.
    """
    name = read_config(folder).get("type", "network")
    if not isinstance(name, str) or name not in JUDGES:
        raise InputError(
            f"{Path(folder) / CONFIG}: type = {name!r:.50} is no judge; known are "
            f"{', '.join(sorted(JUDGES))}"
        )
    return pkgutil.resolve_name(JUDGES[name]).load(folder)
